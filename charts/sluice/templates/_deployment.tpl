{{/*
A Deployment of the control plane: watcher, compiler or webhook.
A dict of `root`, `name` (the service), `values`, `arguments` (YAML list), `volumes` and `mounts` (YAML lists, or empty), `ports` (YAML list),
`ready` (the path of its readiness probe), `account`, and `token`: whether it speaks to the API server.
*/}}
{{- define "sluice.deployment" -}}
{{- $root := .root -}}
{{- $values := .values -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  {{- include "sluice.metadata" (list $root .name (include "sluice.service.name" .)) | nindent 2 }}
  {{- with $values.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- if not $values.autoscaling.enabled }}
  replicas: {{ $values.replicaCount }}
  {{- end }}
  revisionHistoryLimit: {{ $root.Values.revisionHistoryLimit }}
  selector:
    matchLabels:
      {{- include "sluice.selector" (list $root .name) | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "sluice.labels" (list $root .name) | nindent 8 }}
        {{- with $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with $values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ .account }}
      automountServiceAccountToken: {{ .token }}
      enableServiceLinks: false
      securityContext:
        {{- include "sluice.podSecurityContext" $root | nindent 8 }}
      {{- include "sluice.imagePullSecrets" $root | nindent 6 }}
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
      containers:
      - name: {{ .name }}
        image: {{ include "sluice.image" (list $root $values.image) }}
        imagePullPolicy: {{ $values.image.pullPolicy }}
        command: [sluice, {{ .name }}]
        args:
          {{- .arguments | nindent 8 }}
        {{- include "sluice.busArguments" $root | nindent 8 }}
        {{- include "sluice.flagArguments" $root | nindent 8 }}
        env:
        {{- include "sluice.env" $root | nindent 8 }}
        {{- with $values.extraEnvs }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        ports:
        {{- .ports | nindent 8 }}
        - {name: health, containerPort: 10254, protocol: TCP}
        livenessProbe:
          httpGet: {path: /healthz, port: health}
          initialDelaySeconds: 10
          periodSeconds: 10
          timeoutSeconds: 5
          failureThreshold: 3
        readinessProbe:
          httpGet: {path: {{ .ready }}, port: health}
          periodSeconds: 5
          timeoutSeconds: 5
        {{- with $values.resources }}
        resources:
          {{- toYaml . | nindent 10 }}
        {{- end }}
        securityContext:
          {{- include "sluice.containerSecurityContext" $root | nindent 10 }}
        volumeMounts:
        {{- include "sluice.volumeMounts" $root | nindent 8 }}
        {{- .mounts | nindent 8 }}
        {{- with $values.extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      volumes:
      {{- include "sluice.volumes" (list $root .name) | nindent 6 }}
      {{- .volumes | nindent 6 }}
      {{- with $values.extraVolumes }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
      {{- include "sluice.placement" (list $root .name $values) | nindent 6 }}
{{- end -}}

{{/* A dict of `root`, `name`: what its objects are called. */}}
{{- define "sluice.service.name" -}}
{{- printf "%s-%s" (include "sluice.fullname" .root) (include "sluice.component" (list .root .name)) -}}
{{- end -}}

{{/* A dict of `root`, `name`, `values`: its disruption budget, where there is something to keep. */}}
{{- define "sluice.budget" -}}
{{- $replicas := ternary .values.autoscaling.minReplicas .values.replicaCount .values.autoscaling.enabled -}}
{{- if gt (int $replicas) 1 }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  {{- include "sluice.metadata" (list .root .name (include "sluice.service.name" .)) | nindent 2 }}
spec:
  minAvailable: {{ .values.minAvailable }}
  selector:
    matchLabels:
      {{- include "sluice.selector" (list .root .name) | nindent 6 }}
{{- end }}
{{- end -}}

{{/* A dict of `root`, `name`, `values`. */}}
{{- define "sluice.autoscaler" -}}
{{- if .values.autoscaling.enabled }}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  {{- include "sluice.metadata" (list .root .name (include "sluice.service.name" .)) | nindent 2 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "sluice.service.name" . }}
  minReplicas: {{ .values.autoscaling.minReplicas }}
  maxReplicas: {{ .values.autoscaling.maxReplicas }}
  metrics:
  {{- include "sluice.cpuAndMemory" .values.autoscaling | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Metrics of an autoscaler; an empty target takes one out. */}}
{{- define "sluice.cpuAndMemory" -}}
{{- with .targetCPUUtilizationPercentage }}
- type: Resource
  resource: {name: cpu, target: {type: Utilization, averageUtilization: {{ . }}}}
{{- end }}
{{- with .targetMemoryUtilizationPercentage }}
- type: Resource
  resource: {name: memory, target: {type: Utilization, averageUtilization: {{ . }}}}
{{- end }}
{{- end -}}

{{/* (root, component, name): an account for pods that have no business with the API server. */}}
{{- define "sluice.accountWithoutRights" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  {{- include "sluice.metadata" . | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{/* Egress to NATS and to the cluster's DNS. Servers outside cannot be told from anything else by labels. */}}
{{- define "sluice.egressToNats" -}}
- ports:
  - {port: 53, protocol: UDP}
  - {port: 53, protocol: TCP}
{{- if .Values.nats.enabled }}
- to:
  - podSelector:
      matchLabels:
        {{- include "sluice.selector" (list . "nats") | nindent 8 }}
  ports:
  - {port: 4222, protocol: TCP}
{{- else }}
- {}
{{- end }}
{{- if .Values.telemetry.otlpEndpoint }}
- ports:
  - {port: {{ regexFind "[0-9]+$" (trimSuffix "/" .Values.telemetry.otlpEndpoint) | default "4318" }}, protocol: TCP}
{{- end }}
{{- end -}}
