{{/* Jobs that run as Helm hooks. */}}

{{/* (hook, weight): annotations of a hook and of what it needs. */}}
{{- define "sluice.hook" -}}
helm.sh/hook: {{ index . 0 }}
helm.sh/hook-weight: {{ index . 1 | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/*
A dict of `root`, `component`, `name`, `hook`, `weight`, `account`, `token`, `image`, `arguments` (YAML list), `job` (activeDeadlineSeconds,
securityContext, resources, volumes, volumeMounts), `pods` (nodeSelector, tolerations, ...: of all these jobs), `env`, `annotations`.
*/}}
{{- define "sluice.job" -}}
{{- $pods := .pods -}}
apiVersion: batch/v1
kind: Job
metadata:
  {{- include "sluice.metadata" (list .root .component .name) | nindent 2 }}
    {{- with $pods.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    {{- include "sluice.hook" (list .hook .weight) | nindent 4 }}
    {{- with .annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  ttlSecondsAfterFinished: 0
  {{- with .job.activeDeadlineSeconds }}
  activeDeadlineSeconds: {{ . }}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "sluice.labels" (list .root .component) | nindent 8 }}
        {{- with $pods.labels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $pods.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      restartPolicy: OnFailure
      serviceAccountName: {{ .account }}
      automountServiceAccountToken: {{ .token }}
      enableServiceLinks: false
      {{- include "sluice.imagePullSecrets" .root | nindent 6 }}
      {{- with $pods.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $pods.runtimeClassName }}
      runtimeClassName: {{ . }}
      {{- end }}
      {{- with $pods.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $pods.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $pods.securityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
      - name: {{ .job.name | default .component }}
        image: {{ include "sluice.image" (list .root .image) }}
        imagePullPolicy: {{ .image.pullPolicy }}
        command: [sluice]
        args:
          {{- .arguments | nindent 8 }}
        env:
        - name: POD_NAMESPACE
          valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
        {{- with .env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- with .job.resources }}
        resources:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        securityContext:
          {{- toYaml .job.securityContext | nindent 10 }}
        volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- with .job.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
      - {name: tmp, emptyDir: {}}
      {{- with .job.volumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}

{{/* A dict of `root`, `component`, `name`, `hook`, `token`, `labels`: the account of such a job. */}}
{{- define "sluice.jobAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "sluice.metadata" (list .root .component .name) | nindent 2 }}
  annotations:
    {{- include "sluice.hook" (list .hook "-10") | nindent 4 }}
automountServiceAccountToken: {{ .token }}
{{- end -}}

{{/* A dict of `root`, `component`, `kind` (Role or ClusterRole), `name`, `account`, `hook`, `rules` (YAML list): its rights. */}}
{{- define "sluice.jobRights" -}}
{{- range $kind := list .kind (printf "%sBinding" .kind) }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ $.name }}
  {{- if eq $.kind "Role" }}
  namespace: {{ include "sluice.namespace" $.root }}
  {{- end }}
  labels:
    {{- include "sluice.labels" (list $.root $.component) | nindent 4 }}
  annotations:
    {{- include "sluice.hook" (list $.hook "-10") | nindent 4 }}
{{- if eq $kind $.kind }}
rules:
{{ $.rules }}
{{- else }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ $.kind }}
  name: {{ $.name }}
subjects:
- kind: ServiceAccount
  name: {{ $.account }}
  namespace: {{ include "sluice.namespace" $.root }}
{{- end }}
{{- end }}
{{- end -}}
