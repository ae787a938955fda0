{{/* Labels of every object; call with (list . COMPONENT). */}}
{{- define "warren.labels" -}}
{{- $root := index . 0 -}}
{{ include "warren.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: warren
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{/* Labels that pods are selected by. No version: a DaemonSet's template must not change with the chart's. */}}
{{- define "warren.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: warren
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image; call with (list . NAME), NAME a key of the values. */}}
{{- define "warren.image" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- printf "%s/%s:%s" $root.Values.image.registry $name ((index $root.Values $name).image.tag | default $root.Chart.AppVersion) | quote -}}
{{- end }}

{{- define "warren.agentUser" -}}
system:serviceaccount:{{ .Release.Namespace }}:warren-agent
{{- end }}

{{/* What the pods of both daemons have in common. */}}
{{- define "warren.pod" -}}
hostNetwork: true
# Not the cluster's, which may not be up yet.
dnsPolicy: Default
enableServiceLinks: false
automountServiceAccountToken: false
priorityClassName: {{ .Values.priorityClassName }}
terminationGracePeriodSeconds: 15
nodeSelector:
  kubernetes.io/os: linux
  {{- with .Values.nodeSelector }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  seccompProfile:
    type: RuntimeDefault
  # Files of the host are read and written; without SELinux this says nothing.
  seLinuxOptions:
    type: spc_t
{{- end }}

{{/* The volume of the token for the API server; expirationSeconds 3607 would mean a year. */}}
{{- define "warren.token" -}}
- name: token
  projected:
    # 0400, which versions of YAML read differently.
    defaultMode: 256
    sources:
      - serviceAccountToken:
          path: token
          expirationSeconds: 3600
      - configMap:
          name: kube-root-ca.crt
          items:
            - key: ca.crt
              path: ca.crt
      - downwardAPI:
          items:
            - path: namespace
              fieldRef:
                fieldPath: metadata.namespace
{{- end }}

{{/* The environment by which the API server is found. */}}
{{- define "warren.apiServer" -}}
{{- with .Values.kubernetesServiceHost -}}
- name: KUBERNETES_SERVICE_HOST
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kubernetesServicePort }}
- name: KUBERNETES_SERVICE_PORT
  value: {{ . | quote }}
{{- end }}
{{- end }}

{{/* Whether the tunnel answers on its UAPI socket. */}}
{{- define "warren.tunnelAnswers" -}}
exec:
  command: [/usr/bin/warren, show, {{ .Values.interface | quote }}, listen-port]
{{- end }}

{{/* Whether the agent answers on this node's loopback, where the kubelet asks; call with (list . PATH). */}}
{{- define "warren.agentAnswers" -}}
{{- $host := regexReplaceAll ":[0-9]+$" (index . 0).Values.httpListen "" | trimPrefix "[" | trimSuffix "]" -}}
httpGet:
  host: {{ get (dict "0.0.0.0" "127.0.0.1" "::" "::1") $host | default $host | quote }}
  port: {{ include "warren.httpPort" (index . 0) }}
  path: {{ index . 1 }}
{{- end }}

{{- define "warren.httpPort" -}}
{{ regexFind "[0-9]+$" .Values.httpListen }}
{{- end }}
