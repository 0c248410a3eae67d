-- This worker's node: node.json of the generation it was started with. Read once, in init_by_lua (the master), inherited by fork.
local cjson = require("cjson.safe")

local _M = { policies = {}, generation = 0, version = "", files_dir = "", https_port = 443, meta = false, metrics = false }

-- Lua sees an empty JSON array and an absent field alike; node.json always carries all fields.
function _M.load(directory)
  local file = assert(io.open(directory .. "/node.json", "r"))
  local text = file:read("*a")
  file:close()
  local node = assert(cjson.decode(text), "node.json is not JSON")
  for key, value in pairs(node) do
    _M[key] = value
  end
  _M.policies = {}
  for _, hash in ipairs(node.policies) do
    _M.policies[hash] = "@p_" .. hash
  end
  _M.directory = directory
end

return _M
