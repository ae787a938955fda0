{{/* The agent's configuration file. */}}
{{- define "warren.agentConfig" -}}
cluster-cidrs:
  {{- toYaml .Values.clusterCIDRs | nindent 2 }}
reserved-cidrs: {{ toJson .Values.reservedCIDRs }}
registry: kubernetes
pinning: {{ .Values.pinning }}
interface: {{ .Values.interface | quote }}
data-plane: {{ .Values.dataPlane }}
listen-port: {{ .Values.listenPort }}
masquerade: {{ .Values.masquerade }}
persistent-keepalive: {{ .Values.persistentKeepalive }}
mtu: {{ .Values.mtu }}
state-dir: {{ .Values.stateDir }}
run-dir: {{ .Values.runDir }}
cni-conf-dir: {{ .Values.cniConfDir }}
cni-bin-dir: {{ .Values.cniBinDir }}
sysctl-dir: /host/proc/sys
http-listen: {{ .Values.httpListen | quote }}
log-format: {{ .Values.logFormat }}
log-level: {{ .Values.logLevel }}
{{- end }}
