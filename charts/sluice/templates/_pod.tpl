{{/* What the pods of all services share. */}}

{{- define "sluice.env" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: SLUICE_LOG
  value: {{ .Values.telemetry.logLevel }}
{{- with .Values.telemetry.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* All servers by name: one that is down is passed over. */}}
{{- define "sluice.natsURL" -}}
{{- if .Values.nats.enabled -}}
{{- $urls := list -}}
{{- range $i := until (int .Values.nats.replicas) -}}
{{- $urls = append $urls (printf "tls://%s-%d.%s.%s.svc:4222" (include "sluice.nats" $) $i (include "sluice.nats" $) (include "sluice.namespace" $)) -}}
{{- end -}}
{{- join "," $urls -}}
{{- else -}}
{{- .Values.nats.external.url -}}
{{- end -}}
{{- end -}}

{{- define "sluice.busArguments" -}}
- --nats-url
- {{ include "sluice.natsURL" . | quote }}
- --nats-creds
- /etc/sluice/nats/user.creds
- --nats-ca
- /etc/sluice/nats/ca.crt
- --nats-replicas
- {{ ternary .Values.nats.replicas .Values.nats.external.replicas .Values.nats.enabled | quote }}
{{- end -}}

{{/* (root, service): its credential, and a /tmp, since the root file system is read-only. */}}
{{- define "sluice.volumes" -}}
- name: nats
  secret:
    secretName: {{ include "sluice.nats" (index . 0) }}-{{ index . 1 }}
    defaultMode: 0440
- name: tmp
  emptyDir: {}
{{- end -}}

{{- define "sluice.volumeMounts" -}}
- {name: nats, mountPath: /etc/sluice/nats, readOnly: true}
- {name: tmp, mountPath: /tmp}
{{- end -}}

{{- define "sluice.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 101
runAsGroup: 82
fsGroup: 82
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "sluice.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/* (root, component): replicas prefer different nodes. */}}
{{- define "sluice.spread" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
  - weight: 100
    podAffinityTerm:
      topologyKey: kubernetes.io/hostname
      labelSelector:
        matchLabels:
          {{- include "sluice.selector" . | nindent 10 }}
{{- end -}}

{{/* (root, component, values): where its pods run. */}}
{{- define "sluice.placement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 2 -}}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
affinity:
{{- if $values.affinity }}
  {{- tpl (toYaml $values.affinity) $root | nindent 2 }}
{{- else }}
  {{- include "sluice.spread" (list $root (index . 1)) | nindent 2 }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- tpl (toYaml .) $root | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "sluice.imagePullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
