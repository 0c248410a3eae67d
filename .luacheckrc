-- luacheck: nginx's Lua, lines as long as in Python.
std = "ngx_lua"
max_line_length = 150
include_files = { "services/**/*.lua", "tests/**/*.lua" }
