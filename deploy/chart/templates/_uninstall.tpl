{{/* Annotations of what runs after `helm uninstall` has deleted the rest; call with the weight. */}}
{{- define "warren.uninstallHook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/* A container that takes Warren off its node; further arguments follow. */}}
{{- define "warren.uninstallContainer" -}}
image: {{ include "warren.image" (list . "agent") }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
# The Job tells why a node is not done.
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN]
resources:
  requests: {cpu: 10m, memory: 16Mi}
volumeMounts:
  - name: above-state
    mountPath: /host/state
  - name: above-run
    mountPath: /host/run
  - name: above-uapi
    mountPath: /host/uapi
  - name: cni-conf
    mountPath: /host/cni-conf
  - name: cni-bin
    mountPath: /host/cni-bin
command:
  - /usr/bin/warren
  - uninstall
  - --pods
  - --interface={{ .Values.interface }}
  - --state-dir=/host/state/{{ base .Values.stateDir }}
  - --run-dir=/host/run/{{ base .Values.runDir }}
  - --uapi-dir=/host/uapi/wireguard
  - --cni-conf-dir=/host/cni-conf
  - --cni-bin-dir=/host/cni-bin
{{- end }}
