"""The Lua scripts of jobs/lua, one typed Python function each."""
