{{/*
Groups of edge nodes: `controller` describes the first one, each entry of `groups` what is otherwise in a further one. A template of what
a group has gets a root of its own, in which `controller` is the group's, and names carry `groupSuffix`.
*/}}

{{/* (root, template): for the first group and each further one. */}}
{{- define "sluice.eachGroup" -}}
{{ include (index . 1) (index . 0) }}
{{- include "sluice.eachFurtherGroup" (list (index . 0) (index . 1) "---") }}
{{- end -}}

{{/* (root, template, what goes before each) */}}
{{- define "sluice.eachFurtherGroup" -}}
{{- $root := index . 0 -}}
{{- $template := index . 1 -}}
{{- $before := index . 2 -}}
{{- range $group, $own := $root.Values.groups }}
{{- $values := deepCopy (omit $root.Values "groups" "collectedFlags") }}
{{- $name := printf "%s-%s" $group $values.controller.name }}
{{- $class := dict "name" $group "aliases" list "default" false }}
{{- $inherited := mergeOverwrite $values.controller (dict "name" $name "ingressClassResource" $class "watchIngressWithoutClass" false) }}
{{- $controller := mergeOverwrite $inherited (deepCopy (default dict $own)) (dict "group" $group) }}
{{- if not (hasKey (default dict $own) "ingressClass") }}{{ $_ := set $controller "ingressClass" $controller.ingressClassResource.name }}{{ end }}
{{- $_ := set $values "controller" $controller }}
{{- $_ := set $values "groupSuffix" (printf "-%s" $group) }}
{{- with $before }}
{{ . }}
{{- end }}
{{ include $template (dict "Values" $values "Release" $root.Release "Chart" $root.Chart "Capabilities" $root.Capabilities "Files" $root.Files "Template" $root.Template) }}
{{- end }}
{{- end -}}

{{/* (root, component): its label. What each group has of its own carries the group. */}}
{{- define "sluice.component" -}}
{{- $suffix := ternary (default "" (index . 0).Values.groupSuffix) "" (has (index . 1) (list "controller" "compiler")) -}}
{{ index . 1 }}{{ $suffix }}
{{- end -}}

{{/* What the names of a group's own objects begin with, besides the controller's. */}}
{{- define "sluice.edge.fullname" -}}
{{- printf "%s%s" (include "sluice.fullname" .) (default "" .Values.groupSuffix) -}}
{{- end -}}

{{/* The account of a group's edge pods. */}}
{{- define "sluice.edge.account" -}}
{{- printf "%s-edge%s" (include "sluice.fullname" .) (default "" .Values.groupSuffix) -}}
{{- end -}}

{{/* What the watcher is told of a further group. */}}
{{- define "sluice.group.watcherArguments" -}}
{{- $group := .Values.controller.group -}}
- --enrol
- {{ printf "%s/%s=%s" (include "sluice.namespace" .) (include "sluice.edge.account" .) $group }}
{{- $flags := include "sluice.flags" . | fromYaml }}
{{- /* Each is said, also where the first group has it and this one has not. */}}
{{- range $name, $default := dict "configmap" "" "controller-class" "" "ingress-class" "" "ingress-class-by-name" "false" "watch-ingress-without-class" "false" "tcp-services-configmap" "" "udp-services-configmap" "" "publish-service" "" "publish-status-address" "" "default-ssl-certificate" "" "default-backend-service" "" "update-status" "true" "update-status-on-shutdown" "true" "report-node-internal-ip-address" "false" }}
{{- $flag := get $flags $name | default (dict "value" $default) }}
- --group-flag
- {{ printf "%s:%s=%s" $group $name (ternary "true" $flag.value (default false $flag.bare)) | quote }}
{{- end }}
{{- end -}}
