{{/* Everything that this chart cannot do, said before anything is installed. A value is never silently ignored. */}}

{{- define "sluice.refuse" -}}
{{- include "sluice.refuse.flags" . -}}
{{- include "sluice.refuse.images" . -}}
{{- include "sluice.refuse.edge" . -}}
{{- include "sluice.refuse.rest" . -}}
{{- include "sluice.refuse.groups" . -}}
{{- end -}}

{{- define "sluice.refuse.flags" -}}
{{- $supported := .Files.Get "files/supported.yaml" | fromYaml -}}
{{- range $name, $flag := include "sluice.flags" . | fromYaml -}}
{{- if not (has $name $supported.flags) -}}
{{- fail (printf "%s cannot be honoured: it stands for --%s, which this version of Sluice does not have. Leave it at its default." $flag.from $name) -}}
{{- end -}}
{{- end -}}
{{- if and (include "sluice.flagValue" (list . "publish-service")) (include "sluice.flagValue" (list . "publish-status-address")) -}}
{{- fail "controller.extraArgs.publish-service and controller.extraArgs.publish-status-address exclude each other: addresses of Ingresses come from a Service or from a list. Remove one." -}}
{{- end -}}
{{- $asked := dict "controller.proxySetHeaders" (list "proxy-set-headers" .Values.controller.proxySetHeaders) "controller.addHeaders" (list "add-headers" .Values.controller.addHeaders) "dhParam" (list "ssl-dh-param" .Values.dhParam) -}}
{{- range $value, $key := $asked -}}
{{- if and (index $key 1) (not (has (index $key 0) $supported.configKeys)) -}}
{{- fail (printf "%s cannot be honoured: the ConfigMap key %s is not there in this version of Sluice. Remove it." $value (index $key 0)) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* An image of ingress-nginx knows none of these commands. */}}
{{- define "sluice.refuse.images" -}}
{{- $hook := .Values.controller.admissionWebhooks.patch.image -}}
{{- range $where, $image := dict "controller.image" .Values.controller.image "controller.admissionWebhooks.patch.image" $hook -}}
{{- range $part := list "image" "repository" -}}
{{- if regexMatch "ingress-nginx|kube-webhook-certgen" (default "" (get $image $part)) -}}
{{- fail (printf "%s.%s is an image of ingress-nginx (%s). Remove %s.*, or name Sluice's image there." $where $part (get $image $part) $where) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "^v1\\." (toString $image.tag) -}}
{{- fail (printf "%s.tag %s is a release of ingress-nginx. Remove it: the default is the chart's own version." $where $image.tag) -}}
{{- end -}}
{{- end -}}
{{- if or .Values.controller.image.chroot .Values.controller.image.digestChroot -}}
{{- fail "controller.image.chroot and controller.image.digestChroot cannot be honoured: there is no chroot image. nginx has its own unprivileged container, without a token, already; remove them." -}}
{{- end -}}
{{- end -}}

{{- define "sluice.refuse.edge" -}}
{{- $v := .Values.controller -}}
{{- if not (has $v.kind (list "Deployment" "DaemonSet")) -}}
{{- fail "controller.kind is Deployment or DaemonSet" -}}
{{- end -}}
{{- if or $v.customTemplate.configMapName $v.customTemplate.configMapKey -}}
{{- fail "controller.customTemplate cannot be honoured: nginx.conf does not come from one template here. Use controller.config, or snippets." -}}
{{- end -}}
{{- if $v.extraModules -}}
{{- fail "controller.extraModules cannot be honoured: the edge loads the modules of its image and no others. Build an image with the module instead." -}}
{{- end -}}
{{- $health := include "sluice.healthPort" . -}}
{{- range $probe := list "livenessProbe" "readinessProbe" "startupProbe" -}}
{{- $get := get (default dict (get $v $probe)) "httpGet" -}}
{{- if $get -}}
{{- if and $get.port (ne (toString $get.port) $health) (ne (toString $get.port) $v.metrics.portName) -}}
{{- fail (printf "controller.%s.httpGet.port is %v, but health is answered on %s (controller.metrics.port, or extraArgs.healthz-port)" $probe $get.port $health) -}}
{{- end -}}
{{- if and $get.scheme (ne $get.scheme "HTTP") -}}
{{- fail (printf "controller.%s.httpGet.scheme cannot be %s: health is answered over plain HTTP. Leave it at HTTP." $probe $get.scheme) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.autoscaling.enabled $v.keda.enabled -}}
{{- fail "controller.autoscaling and controller.keda cannot both be enabled" -}}
{{- end -}}
{{- if and (eq $v.kind "DaemonSet") (or $v.autoscaling.enabled $v.keda.enabled) -}}
{{- fail "controller.autoscaling and controller.keda need controller.kind: Deployment; a DaemonSet has one pod a node" -}}
{{- end -}}
{{- if and $v.nodeDirectory.hostPath (eq $v.kind "Deployment") -}}
{{- fail "controller.nodeDirectory.hostPath needs controller.kind: DaemonSet; two pods of a Deployment could share a node, and with it the directory" -}}
{{- end -}}
{{- end -}}

{{- define "sluice.refuse.rest" -}}
{{- $v := .Values.controller -}}
{{- if and .Values.rbac.scope (not $v.scope.enabled) -}}
{{- fail "rbac.scope needs controller.scope.enabled: with rights in one namespace only one namespace can be watched" -}}
{{- end -}}
{{- if and $v.disableLeaderElection (gt (int .Values.watcher.replicaCount) 1) -}}
{{- fail "controller.disableLeaderElection is for one watcher alone: set watcher.replicaCount to 1" -}}
{{- end -}}
{{- if and .Values.watcher.autoscaling.enabled -}}
{{- fail "watcher.autoscaling cannot be honoured: one watcher leads and the others wait; more of them do nothing. Use watcher.replicaCount." -}}
{{- end -}}
{{- if and .Values.nats.enabled .Values.nats.external.url -}}
{{- fail "nats.external.url names other servers: set nats.enabled to false" -}}
{{- end -}}
{{- if not (or .Values.nats.enabled .Values.nats.external.url) -}}
{{- fail "nats.enabled is false: nats.external.url must say where NATS is, for example tls://nats.example.com:4222" -}}
{{- end -}}
{{- if not (has (int .Values.nats.replicas) (list 1 3)) -}}
{{- fail "nats.replicas is 1 or 3: two servers tolerate no more than one does" -}}
{{- end -}}
{{- $admission := $v.admissionWebhooks -}}
{{- if ne (dir $admission.certificate) (dir $admission.key) -}}
{{- fail "controller.admissionWebhooks.certificate and .key must be in one directory: one Secret is mounted there" -}}
{{- end -}}
{{- end -}}

{{- define "sluice.refuse.groups" -}}
{{- $seen := dict .Values.controller.ingressClassResource.controllerValue "controller" -}}
{{- if .Values.controller.watchIngressWithoutClass }}{{ $_ := set $seen "without a class" "controller" }}{{ end -}}
{{- $first := .Values.controller.ingressClassResource -}}
{{- $classes := ternary (prepend $first.aliases $first.name) list $first.enabled -}}
{{- range $group, $own := .Values.groups -}}
{{- if or (not (regexMatch "^[a-z0-9]([-a-z0-9]{0,18}[a-z0-9])?$" $group)) (has $group (list $.Values.controller.group "controller" "compiler")) -}}
{{- fail (printf "groups.%s: a group's name has at most 20 of a-z, 0-9 and -, and is not controller.group (%s), controller or compiler" $group $.Values.controller.group) -}}
{{- end -}}
{{- $class := default dict (get (default dict $own) "ingressClassResource") -}}
{{- if not $class.controllerValue -}}
{{- fail (printf "groups.%s.ingressClassResource.controllerValue must say which IngressClasses are its own, for example example.com/%s" $group $group) -}}
{{- end -}}
{{- if hasKey $seen $class.controllerValue -}}
{{- fail (printf "groups.%s.ingressClassResource.controllerValue %s is that of %s already: each Ingress belongs to one group" $group $class.controllerValue (get $seen $class.controllerValue)) -}}
{{- end -}}
{{- $_ := set $seen $class.controllerValue (printf "groups.%s" $group) -}}
{{- if ne (toString (get $class "enabled")) "false" -}}
{{- range $name := prepend (default list $class.aliases) (default $group $class.name) -}}
{{- if has $name $classes -}}
{{- fail (printf "groups.%s.ingressClassResource: the IngressClass %s is another group's already; give it another name" $group $name) -}}
{{- end -}}
{{- $classes = append $classes $name -}}
{{- end -}}
{{- end -}}
{{- if get (default dict $own) "watchIngressWithoutClass" -}}
{{- if hasKey $seen "without a class" -}}
{{- fail (printf "groups.%s.watchIngressWithoutClass: Ingresses without a class are another group's already" $group) -}}
{{- end -}}
{{- $_ := set $seen "without a class" $group -}}
{{- end -}}
{{- range $shared := list "admissionWebhooks" "scope" "electionID" "electionTTL" "disableLeaderElection" -}}
{{- if hasKey (default dict $own) $shared -}}
{{- fail (printf "groups.%s.%s cannot be honoured: watchers and webhook are the same for all groups. Set controller.%s." $group $shared $shared) -}}
{{- end -}}
{{- end -}}
{{- $full := printf "%s-%s-%s" (include "sluice.fullname" $) $group $.Values.controller.name -}}
{{- if gt (len $full) 52 -}}
{{- fail (printf "groups.%s: %s is longer than 52 characters; shorten the group's name or fullnameOverride" $group $full) -}}
{{- end -}}
{{- end -}}
{{- include "sluice.eachFurtherGroup" (list . "sluice.refuse.group" "") -}}
{{- end -}}

{{/* What the first group may not say, others may not either. */}}
{{- define "sluice.refuse.group" -}}
{{- include "sluice.refuse.flags" . -}}
{{- include "sluice.refuse.edge" . -}}
{{- end -}}
