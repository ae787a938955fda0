{{/* What the schema has no words for, or none that people understand. */}}
{{- define "warren.checks" -}}
{{- if not .Values.clusterCIDRs }}
{{- fail "\n\nclusterCIDRs is missing. Give the pod ranges of the whole cluster, as kube-controller-manager's --cluster-cidr has them:\n\n  --set clusterCIDRs='{10.244.0.0/16,fd00:10:244::/48}'\n" }}
{{- end }}
{{- range $key := list "clusterCIDRs" "reservedCIDRs" }}
{{- range index $.Values $key }}
{{- include "warren.checkCIDR" (list $key .) }}
{{- end }}
{{- end }}
{{- if and .Values.podMonitor.enabled (not (include "warren.httpIsOpen" .)) }}
{{- fail (printf "\n\npodMonitor.enabled is true, and httpListen is %s, which no Prometheus can reach. Read in values.yaml what another httpListen tells to whom.\n" .Values.httpListen) }}
{{- end }}
{{- $namespace := lookup "v1" "Namespace" "" .Release.Namespace | default dict }}
{{- $enforced := dig "metadata" "labels" "pod-security.kubernetes.io/enforce" "privileged" $namespace }}
{{- if ne $enforced "privileged" }}
{{- fail (printf "\n\nnamespace %s enforces the pod security standard %q, which refuses pods in the host's network:\n\n  kubectl label --overwrite namespace %s pod-security.kubernetes.io/enforce=privileged\n" .Release.Namespace $enforced .Release.Namespace) }}
{{- end }}
{{- end }}

{{/* One prefix; call with (list KEY PREFIX). Overlaps, and host bits of IPv6, are found by the agents. */}}
{{- define "warren.checkCIDR" -}}
{{- $key := index . 0 -}}
{{- $cidr := index . 1 -}}
{{- $byte := "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" -}}
{{- $v4 := regexMatch (printf "^(%s\\.){3}%s/(3[0-2]|[12]?[0-9])$" $byte $byte) $cidr -}}
{{- $v6 := regexMatch "^[0-9a-fA-F]*:[0-9a-fA-F:]*:[0-9a-fA-F]*/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$" $cidr -}}
{{- if not (or $v4 $v6) }}
{{- fail (printf "\n\n%s has %q, which is no prefix; allowed: IPv4 or IPv6 ADDRESS/LENGTH, such as 10.244.0.0/16 or fd00:10:244::/48\n" $key $cidr) }}
{{- end }}
{{- if $v4 }}
{{- $parts := splitList "/" $cidr -}}
{{- $number := 0 -}}
{{- range splitList "." (first $parts) }}
{{- $number = add (mul $number 256) (atoi .) -}}
{{- end }}
{{- $size := 1 -}}
{{- range until (int (sub 32 (atoi (last $parts)))) }}
{{- $size = mul $size 2 -}}
{{- end }}
{{- if mod $number $size }}
{{- fail (printf "\n\n%s has %q with host bits set; allowed: the range's first address, /LENGTH\n" $key $cidr) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Not empty when others than the node itself reach the agent's HTTP port. */}}
{{- define "warren.httpIsOpen" -}}
{{- if and (ne .Values.httpListen "off") (not (regexMatch "^(127\\.|\\[::1\\])" .Values.httpListen)) }}yes{{ end }}
{{- end }}
