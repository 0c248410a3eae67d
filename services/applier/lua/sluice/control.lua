-- The control socket: pushes, questions about this worker and its shared memory. Only the applier can reach it (its folder is 0700).
local beat = require("sluice.beat")
local cjson = require("cjson.safe")
local node = require("sluice.node")
local tables = require("sluice.tables")
local metrics = require("sluice.metrics")

local rows = ngx.shared.sluice_tables
local state = ngx.shared.sluice_state

local _M = {}

local function answer(status, body)
  ngx.status = status
  ngx.header["Content-Type"] = "application/json"
  ngx.say(cjson.encode(body))
  return ngx.exit(ngx.HTTP_OK)
end

local function body()
  ngx.req.read_body()
  local data = ngx.req.get_body_data()
  if data then
    return data
  end
  local path = ngx.req.get_body_file()
  if not path then
    return ""
  end
  local file = assert(io.open(path, "r"))
  data = file:read("*a")
  file:close()
  return data
end

local function push()
  local data = body()
  local newline = data:find("\n", 1, true)
  local header = newline and cjson.decode(data:sub(1, newline - 1))
  if type(header) ~= "table" or type(header.base) ~= "string" or type(header.version) ~= "string" then
    return answer(400, { error = "the first line is not a push header" })
  end
  local lines = data:sub(newline + 1)
  if ngx.crc32_long(lines) ~= header.crc32 then
    return answer(400, { error = "crc32 does not match" })
  end
  local upserts, deletes = tables.parse(lines)
  if not upserts then
    return answer(400, { error = deletes })
  end
  local loaded = state:get("version") or ""
  if header.base ~= "" and header.base ~= loaded then
    return answer(409, { version = loaded })
  end
  local ok, err = tables.apply(header, upserts, deletes)
  if not ok then
    return answer(507, { error = err, free_bytes = rows:free_space() })
  end
  return answer(200, { version = header.version })
end

local function generation()
  return answer(200, {
    generation = node.generation,
    version = state:get("version") or "",
    digest = state:get("digest") or "",
    pid = ngx.worker.pid(),
    exiting = ngx.worker.exiting(),
  })
end

local function stats()
  return answer(200, {
    tables = { capacity_bytes = rows:capacity(), free_bytes = rows:free_space() },
    state = { capacity_bytes = state:capacity(), free_bytes = state:free_space() },
    version = state:get("version") or "",
    connections = {
      active = tonumber(ngx.var.connections_active),
      reading = tonumber(ngx.var.connections_reading),
      writing = tonumber(ngx.var.connections_writing),
      waiting = tonumber(ngx.var.connections_waiting),
    },
  })
end

local function row()
  local key = ngx.unescape_uri(ngx.var.arg_key or "")
  local kind = key:sub(1, 2)
  local value = rows:get(key)
  if not value or kind == "c/" or kind == "f/" then
    return answer(404, { error = "no such row to show" })
  end
  ngx.header["Content-Type"] = "application/json"
  ngx.say(value)
  return ngx.exit(ngx.HTTP_OK)
end

local function beats()
  return answer(200, beat.of(ngx.var.arg_pids or ""))
end

local function exposition()
  ngx.header["Content-Type"] = "text/plain"
  ngx.print(metrics.text())
  return ngx.exit(ngx.HTTP_OK)
end

local ROUTES = {
  ["POST /tables"] = push,
  ["GET /generation"] = generation,
  ["GET /stats"] = stats,
  ["GET /beats"] = beats,
  ["GET /metrics"] = exposition,
  ["GET /row"] = row,
}

function _M.serve()
  local handler = ROUTES[ngx.req.get_method() .. " " .. ngx.var.uri]
  if not handler then
    return answer(404, { error = "no such question" })
  end
  return handler()
end

return _M
