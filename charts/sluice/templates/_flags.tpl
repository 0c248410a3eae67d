{{/* Controller flags under ingress-nginx's names, from the values that stand for them. */}}

{{/* YAML: flag -> {value, from}: which value of the chart asks for it. Collected once, since every template asks. */}}
{{- define "sluice.flags" -}}
{{- if not (hasKey .Values "collectedFlags") -}}
{{- $_ := set .Values "collectedFlags" (include "sluice.collectFlags" .) -}}
{{- end -}}
{{- .Values.collectedFlags -}}
{{- end -}}

{{/* `extraArgs` goes last and therefore counts. */}}
{{- define "sluice.collectFlags" -}}
{{- $v := .Values.controller -}}
{{- $ns := include "sluice.namespace" . -}}
{{- $f := dict -}}
{{- $_ := set $f "configmap" (dict "value" (printf "%s/%s" (default $ns $v.configMapNamespace) (include "sluice.controller" .)) "from" "controller.config") -}}
{{- $_ := set $f "controller-class" (dict "value" $v.ingressClassResource.controllerValue "from" "controller.ingressClassResource.controllerValue") -}}
{{- $_ := set $f "election-id" (dict "value" (include "sluice.electionID" .) "from" "controller.electionID") -}}
{{- with $v.ingressClass }}{{ $_ := set $f "ingress-class" (dict "value" . "from" "controller.ingressClass") }}{{ end -}}
{{- if not $v.enableAnnotationValidations }}{{ $_ := set $f "enable-annotation-validation" (dict "value" "false" "from" "controller.enableAnnotationValidations") }}{{ end -}}
{{- if $v.watchIngressWithoutClass }}{{ $_ := set $f "watch-ingress-without-class" (dict "value" "true" "from" "controller.watchIngressWithoutClass") }}{{ end -}}
{{- if $v.ingressClassByName }}{{ $_ := set $f "ingress-class-by-name" (dict "value" "true" "from" "controller.ingressClassByName") }}{{ end -}}
{{- if $v.enableTopologyAwareRouting }}{{ $_ := set $f "enable-topology-aware-routing" (dict "value" "true" "from" "controller.enableTopologyAwareRouting") }}{{ end -}}
{{- if $v.disableLeaderElection }}{{ $_ := set $f "disable-leader-election" (dict "value" "true" "from" "controller.disableLeaderElection") }}{{ end -}}
{{- with $v.electionTTL }}{{ $_ := set $f "election-ttl" (dict "value" . "from" "controller.electionTTL") }}{{ end -}}
{{- if and $v.reportNodeInternalIp $v.hostNetwork }}{{ $_ := set $f "report-node-internal-ip-address" (dict "value" "true" "from" "controller.reportNodeInternalIp") }}{{ end -}}
{{- if ne $v.healthCheckPath "/healthz" }}{{ $_ := set $f "health-check-path" (dict "value" $v.healthCheckPath "from" "controller.healthCheckPath") }}{{ end -}}
{{- with $v.healthCheckHost }}{{ $_ := set $f "healthz-host" (dict "value" . "from" "controller.healthCheckHost") }}{{ end -}}
{{- with $v.maxmindLicenseKey }}{{ $_ := set $f "maxmind-license-key" (dict "value" . "from" "controller.maxmindLicenseKey") }}{{ end -}}
{{- if $v.metrics.enabled }}{{ $_ := set $f "enable-metrics" (dict "value" "true" "from" "controller.metrics.enabled") }}{{ end -}}
{{- if .Values.tcp }}{{ $_ := set $f "tcp-services-configmap" (dict "value" (printf "%s/%s-tcp" (default $ns $v.tcp.configMapNamespace) (include "sluice.edge.fullname" .)) "from" "tcp") }}{{ end -}}
{{- if .Values.udp }}{{ $_ := set $f "udp-services-configmap" (dict "value" (printf "%s/%s-udp" (default $ns $v.udp.configMapNamespace) (include "sluice.edge.fullname" .)) "from" "udp") }}{{ end -}}
{{- if .Values.defaultBackend.enabled }}{{ $_ := set $f "default-backend-service" (dict "value" (printf "%s/%s" $ns (include "sluice.defaultBackend" .)) "from" "defaultBackend.enabled") }}{{ end -}}
{{- if $v.scope.enabled }}{{ $_ := set $f "watch-namespace" (dict "value" (default $ns $v.scope.namespace) "from" "controller.scope.namespace") }}
{{- else if $v.scope.namespaceSelector }}{{ $_ := set $f "watch-namespace-selector" (dict "value" $v.scope.namespaceSelector "from" "controller.scope.namespaceSelector") }}{{ end -}}
{{- if and $v.publishService.enabled (include "sluice.publishService" .) }}{{ $_ := set $f "publish-service" (dict "value" (include "sluice.publishService" .) "from" "controller.publishService.enabled") }}{{ end -}}
{{- /* Load balancers that ask /healthz must notice before nginx takes no more connections. */}}
{{- $_ := set $f "shutdown-grace-period" (dict "value" "10" "from" "terminationGracePeriodSeconds") -}}
{{- range $name, $value := $v.extraArgs }}
{{- $text := ternary "" (tpl (toString $value) $) (kindIs "invalid" $value) }}
{{- $_ := set $f (trimPrefix "--" $name) (dict "value" $text "bare" (eq $text "") "from" (printf "controller.extraArgs.%s" $name)) }}
{{- end -}}
{{- if and (hasKey $v.extraArgs "publish-status-address") (not (hasKey $v.extraArgs "publish-service")) }}{{ $_ := unset $f "publish-service" }}{{ end -}}
{{ toYaml $f }}
{{- end -}}

{{/* namespace/name of the Service whose addresses go to Ingress status; empty: there is none. */}}
{{- define "sluice.publishService" -}}
{{- $v := .Values.controller -}}
{{- $own := printf "%s/%s" (include "sluice.namespace" .) (include "sluice.controller" .) -}}
{{- if $v.publishService.pathOverride -}}{{ tpl $v.publishService.pathOverride . }}
{{- else if and $v.service.enabled $v.service.external.enabled -}}{{ $own }}
{{- else if and $v.service.enabled $v.service.internal.enabled $v.service.internal.annotations -}}{{ $own }}-internal
{{- end -}}
{{- end -}}

{{/* (root, flag): its value, or nothing. */}}
{{- define "sluice.flagValue" -}}
{{- $flag := get (include "sluice.flags" (index . 0) | fromYaml) (index . 1) -}}
{{- if $flag -}}{{ $flag.value }}{{- end -}}
{{- end -}}

{{/* Arguments that hand all flags to a service: every service takes all, and looks at those that are its own. */}}
{{- define "sluice.flagArguments" -}}
{{- range $name, $flag := include "sluice.flags" . | fromYaml }}
{{- if not (has $name (list "http-port" "https-port" "healthz-port")) }}
- --set-flag
- {{ ternary $name (printf "%s=%s" $name $flag.value) (default false $flag.bare) | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The ports of the edge: `extraArgs` names them as ingress-nginx's flags do. */}}
{{- define "sluice.httpPort" -}}{{ default .Values.controller.containerPort.http (include "sluice.flagValue" (list . "http-port")) }}{{- end -}}
{{- define "sluice.httpsPort" -}}{{ default .Values.controller.containerPort.https (include "sluice.flagValue" (list . "https-port")) }}{{- end -}}
{{- define "sluice.healthPort" -}}{{ default .Values.controller.metrics.port (include "sluice.flagValue" (list . "healthz-port")) }}{{- end -}}
