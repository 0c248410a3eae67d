-- The rewrite phase of `location /`: host -> route -> variables -> the policy's named location. In the order of behaviours.md §13, with
-- one difference: allow and deny lists act here, before the policy's rate limits (docs/differences.md).
local node = require("sluice.node")
local rows = require("sluice.rows")
local hosts = require("sluice.hosts")
local routes = require("sluice.routes")
local balancing = require("sluice.balancing")
local affinity = require("sluice.affinity")
local canary = require("sluice.canary")
local cidr = require("sluice.cidr")
local cors = require("sluice.cors")
local template = require("sluice.template")

local _M = {}

local NOT_FOUND = "@sluice_404"

local function meta(route)
  local var = ngx.var
  var.namespace = route.namespace or ""
  var.ingress_name = route.ingress or ""
  var.service_name = route.service or ""
  var.service_port = route.port or ""
  var.location_path = route.path or ""
end

-- Ends the request with a status of the router's own. A code that the route intercepts goes to its error backend, as nginx's would.
-- `route`: the settings, where there is none yet.
local function finish(route, status)
  for _, code in ipairs(route and route.errors or {}) do
    if code == status then
      meta(route)
      ngx.var.sluice_error_backend = route.error_backend or rows.settings().default_backend or ""
      return ngx.exec("@sluice_error_" .. status)
    end
  end
  if route and route.cors then
    cors.apply(route.cors)
  end
  return ngx.exit(status)
end

local function redirect(route, url, status)
  if route and route.cors then
    cors.apply(route.cors)
  end
  ngx.header["Location"] = url
  return ngx.exit(status)
end

local function blocked(settings)
  local var = ngx.var
  return settings.cidrs and cidr.contains(settings.cidrs, var.binary_remote_addr)
    or settings.user_agents and routes.any(settings.user_agents, var.http_user_agent or "", true)
    or settings.referers and routes.any(settings.referers, var.http_referer or "", true)
end

-- What nginx itself makes of a Location that is a path.
local function absolute(url)
  if url:byte(1) ~= 47 or rows.settings().relative_redirects then
    return url
  end
  local var = ngx.var
  return var.scheme .. "://" .. (var.http_host or var.host) .. url
end

local function add_slash()
  local var = ngx.var
  local args = var.args
  return redirect(nil, absolute(ngx.escape_uri(var.uri, 0) .. "/" .. (args and "?" .. args or "")), 301)
end

-- Redirects to https where the route wants it; returns otherwise.
local function to_https(route, host, name, row, v)
  if route.ssl_redirect ~= "force" and not hosts.has_tls(host, name, row, v) then
    return
  end
  local var = ngx.var
  if var.pass_access_scheme ~= "http" then
    return
  end
  local target = var.best_http_host
  if not target or target == "" then
    target = host
  end
  target = target:gsub(":%d+$", "")
  local uri = var.request_uri
  if not route.preserve_trailing_slash and uri:byte(-1) == 47 then
    uri = uri:sub(1, -2)
  end
  local port = route.port_in_redirect and ":" .. node.https_port or ""
  return redirect(route, "https://" .. target .. port .. uri, rows.settings().http_redirect_code)
end

local function rewrite(route)
  local r = route.rewrite
  local captures, err = ngx.re.match(ngx.var.uri, r.pattern, "ijo")
  if err then
    ngx.log(ngx.WARN, "rewrite pattern gave up: ", err)
    return finish(route, 500)
  end
  if not captures then
    return
  end
  if route.forwarded_prefix then
    ngx.var.sluice_prefix = template.expand(route.forwarded_prefix, captures)
  end
  local uri = template.expand(r.target, captures)
  if uri:byte(1) ~= 47 then
    uri = "/" .. uri
  end
  ngx.req.set_uri(uri, false, true)
end

-- The route's error headers on a request that a stand-in answers for an empty upstream.
local function stand_in(route)
  local backend = route.standin and rows.backend(route.standin)
  if not backend or not balancing.alive(backend) then
    return finish(route, 503)
  end
  local set = ngx.req.set_header
  set("X-Code", "503")
  set("X-Format", ngx.var.http_accept or "")
  set("X-Namespace", route.namespace or "")
  set("X-Ingress-Name", route.ingress or "")
  set("X-Service-Name", route.service or "")
  set("X-Service-Port", route.port or "")
  return backend
end

-- The backend that serves, with its variables set. `primary`: the route's own, where there is one.
local function choose_backend(route, row_name, v, primary)
  local var = ngx.var
  if not primary or not balancing.alive(primary) then
    if not route.backend or route.backend == rows.settings(v).default_backend then -- the built-in one stands for one that is not there
      var.proxy_upstream_name = "upstream-default-backend"
      var.sluice_backend = balancing.BUILTIN
      return
    end
    local standing = stand_in(route)
    var.sluice_backend = standing.key
    return
  end
  local backend = primary
  if primary.canary then
    backend = canary.choose(primary)
    if backend ~= primary then
      var.proxy_alternative_upstream_name = backend.name
    end
  end
  if backend.affinity and #backend.endpoints > 0 then -- one is enough: a canary may stand beside it, and more may come
    meta(route)
    var.sluice_row = row_name
    var.sluice_endpoint = backend.endpoints[affinity.pick(backend, route, row_name)].id
  end
  var.sluice_backend = backend.key
end

local function access(route)
  if not (route.block_list or route.allow_list) then
    return
  end
  local address = ngx.var.binary_remote_addr
  if route.block_list and cidr.contains(route.block_list, address) or route.allow_list and not cidr.contains(route.allow_list, address) then
    return finish(route, 403)
  end
end

local function too_large(route)
  local length = ngx.var.content_length
  return length and route.body_size > 0 and (tonumber(length) or 0) > route.body_size
end

-- What a route asks for beyond a backend.
local function features(route, host, name, row, v)
  local var = ngx.var
  if route.cors then
    cors.preflight(route.cors)
    var.sluice_cors = route.cors_text
  end
  if route.redirect then
    return redirect(route, absolute(route.redirect.url), route.redirect.code)
  end
  if route.deny then
    return finish(route, route.deny)
  end
  if route.rewrite then
    rewrite(route)
  end
  if route.ssl_redirect then
    to_https(route, host, name, row, v)
  end
  if route.vhost then
    var.sluice_host = template.expand(route.vhost)
  end
  if route.limit_key then
    var.sluice_limit_key = route.limit_key
  end
  if route.basic then
    var.sluice_basic_realm = route.basic.realm or ""
    var.sluice_basic_file = node.files_dir .. "/" .. route.basic.file
  end
  if route.auth then
    var.sluice_auth = route.auth_text
  end
  if route.errors then
    meta(route)
    var.sluice_error_backend = route.error_backend or rows.settings().default_backend or ""
  end
  if route.access_log == false then
    var.sluice_quiet = "1"
  end
end

-- The first item of X-Forwarded-Host, where it is trusted: `$best_http_host`.
local function forwarded_host()
  local value = ngx.var.http_x_forwarded_host
  local first = value and value:match("^%s*([^,%s]+)")
  if first then
    ngx.var.sluice_forwarded_host = first
  end
end

local function unmatched(settings)
  local var = ngx.var
  if not settings.log_unmatched then
    var.sluice_quiet = "1"
  end
  var.proxy_upstream_name = "upstream-default-backend"
  return ngx.exec(NOT_FOUND)
end

-- The route, where this worker can serve it; a worker of the old generation takes the row's previous form.
local function find(host, uri, v)
  local row, name = hosts.find(host, rows.host, v)
  if not row then
    return nil
  end
  local route, slash = routes.find(row, uri)
  if route == routes.GAVE_UP then
    return row, name, route
  end
  if route and not node.policies[route.policy] then
    row, name = hosts.find(host, rows.previous_host, v)
    if not row then
      return nil
    end
    route, slash = routes.find(row, uri)
    if route and route ~= routes.GAVE_UP and not node.policies[route.policy] then
      return nil
    end
  end
  return row, name, route, slash
end

-- The catch-all's own paths; returns for any other.
local function own_paths(uri)
  if uri:sub(1, 8) == "/healthz" then
    ngx.var.sluice_quiet = "1"
    return ngx.exec("@sluice_health")
  elseif uri:sub(1, 13) == "/nginx_status" then
    ngx.var.sluice_quiet = "1"
    return ngx.exec("@sluice_status")
  end
end

function _M.route()
  local var = ngx.var
  local v = rows.now()
  local settings = rows.settings(v)
  if settings.blocks and blocked(settings) then
    return finish(settings, 403)
  end
  local host, uri = var.host, var.uri
  local row, name, route, slash = find(host, uri, v)
  local primary = route and route.backend and rows.backend(route.backend, v)
  if not primary and row and rows.now() ~= v then -- a push took the backend between the two look-ups; its route is another one by now
    v = rows.now()
    row, name, route, slash = find(host, uri, v)
    primary = route and route.backend and rows.backend(route.backend, v)
  end
  if name == "_" or not name then
    own_paths(uri)
  end
  if not row then
    return unmatched(settings)
  end
  if route == routes.GAVE_UP then
    return finish(nil, 500)
  end
  if settings.skip_urls and routes.any(settings.skip_urls, var.request_uri) then
    var.sluice_quiet = "1"
  end
  if uri == "/" and row.app_root then
    return redirect(route, var.scheme .. "://" .. (var.http_host or host) .. row.app_root, 302)
  end
  if slash then
    return add_slash()
  end
  if not route then
    return unmatched(settings)
  end
  if settings.use_forwarded_headers then
    forwarded_host()
  end
  var.sluice_host = settings.use_forwarded_headers and var.best_http_host or var.http_host or host
  if node.meta or route.names then
    meta(route)
    var.sluice_row = name
  end
  var.proxy_upstream_name = primary and primary.name or route.upstream_name
  if not route.plain then
    features(route, host, name, row, v)
  end
  if not route.backend and name == "_" and not route.ingress then
    return unmatched(settings)
  end
  choose_backend(route, name, v, primary)
  if not route.plain then
    access(route)
  end
  if too_large(route) then
    return finish(route, 413)
  end
  return ngx.exec(route.exec)
end

return _M
