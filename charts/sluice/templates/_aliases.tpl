{{/*
The helpers of ingress-nginx's chart that a values.yaml may include, with the names of this chart. Where another chart depends on both, Helm
takes one of two templates of a name for both of them: with the chart and the values of ingress-nginx these give what its own give (but for
names of more than 40 characters).
*/}}

{{- define "ingress-nginx.name" -}}{{ include "sluice.name" . }}{{- end -}}

{{- define "ingress-nginx.chart" -}}{{ include "sluice.chart" . }}{{- end -}}

{{- define "ingress-nginx.namespace" -}}{{ include "sluice.namespace" . }}{{- end -}}

{{- define "ingress-nginx.fullname" -}}{{ include "sluice.fullname" . }}{{- end -}}

{{- define "ingress-nginx.controller.fullname" -}}{{ include "sluice.controller" . }}{{- end -}}

{{- define "ingress-nginx.controller.electionID" -}}{{ include "sluice.electionID" . }}{{- end -}}

{{- define "ingress-nginx.controller.publishServicePath" -}}
{{- default (printf "%s/%s" (include "sluice.namespace" .) (include "sluice.controller" .)) .Values.controller.publishService.pathOverride -}}
{{- end -}}

{{- define "ingress-nginx.admissionWebhooks.fullname" -}}{{ include "sluice.admission" . }}{{- end -}}

{{- define "ingress-nginx.admissionWebhooks.patch.serviceAccountName" -}}{{ include "sluice.admission.serviceAccount" . }}{{- end -}}

{{- define "ingress-nginx.admissionWebhooks.createSecretJob.fullname" -}}
{{- printf "%s-%s" (include "sluice.admission" .) .Values.controller.admissionWebhooks.createSecretJob.name -}}
{{- end -}}

{{- define "ingress-nginx.admissionWebhooks.patchWebhookJob.fullname" -}}
{{- printf "%s-%s" (include "sluice.admission" .) .Values.controller.admissionWebhooks.patchWebhookJob.name -}}
{{- end -}}

{{- define "ingress-nginx.defaultBackend.fullname" -}}{{ include "sluice.defaultBackend" . }}{{- end -}}

{{- define "ingress-nginx.defaultBackend.serviceAccountName" -}}{{ include "sluice.defaultBackend.serviceAccount" . }}{{- end -}}

{{- define "ingress-nginx.serviceAccountName" -}}{{ include "sluice.watcher.serviceAccount" . }}{{- end -}}

{{- define "ingress-nginx.selectorLabels" -}}
app.kubernetes.io/name: {{ include "sluice.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ingress-nginx.labels" -}}
helm.sh/chart: {{ include "sluice.chart" . }}
{{ include "ingress-nginx.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: {{ include "sluice.name" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}
