-- Writing rows: all or nothing, readers never see a row before what it refers to.
--
-- Format of a push: a JSON line (base, version, digest, keep_previous, crc32), then `+key<TAB>json` and `-key` lines.
local cjson = require("cjson.safe")

local tables = ngx.shared.sluice_tables
local state = ngx.shared.sluice_state

local _M = {}

-- What is referred to is written before what refers to it: certificates and backends, then names, aliases and hosts.
local RANK = { c = 1, f = 1, n = 1, b = 2, s = 3, r = 3, t = 3, a = 4, h = 5 }

local function rank(key)
  return RANK[key:sub(1, 1)] or 6
end

-- list of {key, json}, list of keys; or nil and what is wrong.
function _M.parse(body)
  local upserts, deletes = {}, {}
  local from, size = 1, #body
  while from <= size do
    local to = body:find("\n", from, true)
    if not to then
      return nil, "the last line does not end"
    end
    local kind = body:byte(from)
    if kind == 43 then -- +
      local tab = body:find("\t", from, true)
      if not tab or tab > to then
        return nil, "a line without a tab"
      end
      upserts[#upserts + 1] = { body:sub(from + 1, tab - 1), body:sub(tab + 1, to - 1) }
    elseif kind == 45 then -- -
      deletes[#deletes + 1] = body:sub(from + 1, to - 1)
    else
      return nil, "a line that neither adds nor deletes"
    end
    from = to + 1
  end
  table.sort(upserts, function(a, b)
    local x, y = rank(a[1]), rank(b[1])
    return x < y or (x == y and a[1] < b[1])
  end)
  return upserts, deletes
end

-- Undoes what was written, last first: no row refers to one that is gone already, and none is missing in between. An old value that does not
-- fit yet is tried again when all new ones are gone: then there is as much room as before. The counter moves, for what workers have cached.
local function restore(written)
  local later = {}
  for i = #written, 1, -1 do
    local key, old = written[i][1], written[i][2]
    if not old then
      tables:delete(key)
    elseif not tables:safe_set(key, old) then
      later[#later + 1] = written[i]
    end
  end
  for i = #later, 1, -1 do
    local key, old = later[i][1], later[i][2]
    local ok, err = tables:safe_set(key, old)
    if not ok then
      ngx.log(ngx.ERR, "a row was lost while a refused push was undone: ", key, ": ", err)
      state:set("version", "")
    end
  end
  state:incr("v", 1, 0)
end

-- Sets one row and notes its old value first: a value of another length that does not fit has already cost the old one.
local function set(written, key, value, old)
  written[#written + 1] = { key, old }
  local ok, err = tables:safe_set(key, value)
  if not ok then
    restore(written)
  end
  return ok, err
end

local function write(upserts, keep_previous)
  local written = {}
  for i = 1, #upserts do
    local key, value = upserts[i][1], upserts[i][2]
    local old = tables:get(key)
    if old ~= value then
      local ok, err = true, nil
      if keep_previous and old and key:byte(1) == 104 then
        ok, err = set(written, "p:" .. key, old, nil)
      end
      if ok then
        ok, err = set(written, key, value, old)
      end
      if not ok then
        return nil, err
      end
    end
  end
  return written
end

local function drop_previous()
  if state:get("previous") then
    for _, key in ipairs(tables:get_keys(0)) do
      if key:sub(1, 2) == "p:" then
        tables:delete(key)
      end
    end
    state:delete("previous")
  end
end

-- Everything that a full push does not name goes, except this node's own DNS answers.
local function absent(upserts)
  local keep = {}
  for i = 1, #upserts do
    keep[upserts[i][1]] = true
  end
  local gone = {}
  for _, key in ipairs(tables:get_keys(0)) do
    local kind = key:sub(1, 2)
    if not keep[key] and kind ~= "n/" and kind ~= "p:" then
      gone[#gone + 1] = key
    end
  end
  return gone
end

-- Applies parsed rows. true, or nil and "no memory".
function _M.apply(header, upserts, deletes)
  if header.keep_previous then
    drop_previous()
    state:set("previous", true)
  end
  local full = header.base == ""
  local written, err = write(upserts, header.keep_previous)
  if not written then
    return nil, err
  end
  if full then
    deletes = absent(upserts)
  end
  state:set("version", header.version)
  state:set("digest", header.digest or "")
  state:incr("v", 1, 0)
  for _, key in ipairs(deletes) do
    tables:delete(key)
  end
  state:incr("v", 1, 0)
  return true
end

-- --- from disk, in the master before any worker exists

local function load_lines(file)
  for line in file:lines() do
    local tab = line:find("\t", 1, true)
    if tab then
      local ok, err = tables:safe_set(line:sub(1, tab - 1), line:sub(tab + 1))
      assert(ok, "sluice_tables is too small: " .. tostring(err))
    end
  end
end

-- Records of the journal: `#<length> <crc32>\n`, then a push body of that length. A torn tail ends it.
local function replay(file)
  while true do
    local head = file:read("*l")
    local length, crc = (head or ""):match("^#(%d+) (%d+)$")
    local body = length and file:read(tonumber(length))
    if not body or #body ~= tonumber(length) or ngx.crc32_long(body) ~= tonumber(crc) then
      return
    end
    local newline = body:find("\n", 1, true)
    local header = newline and cjson.decode(body:sub(1, newline - 1))
    local upserts, deletes = _M.parse(body:sub((newline or 0) + 1))
    assert(header and upserts, "journal.tsv: " .. tostring(deletes))
    header.base = "journal" -- never everything: a record holds what one push changed
    header.keep_previous = nil
    assert(_M.apply(header, upserts, deletes))
  end
end

local function each(path, read)
  local file = io.open(path, "r")
  if file then
    read(file)
    file:close()
  end
end

-- Fills shared memory where it is empty: a fresh start, or a reload with another dictionary size.
function _M.load(directory, prefix)
  if state:get("version") and #tables:get_keys(1) > 0 then -- the version outlives a reload with another size, the rows do not
    return
  end
  local file = assert(io.open(directory .. "/tables.tsv", "r"))
  local header = assert(cjson.decode(file:read("*l")), "tables.tsv has no header")
  load_lines(file)
  file:close()
  each(prefix .. "local.tsv", load_lines)
  state:set("version", header.version)
  state:set("digest", header.digest or "")
  state:set("v", 1)
  each(directory .. "/journal.tsv", replay)
end

return _M
