"""Typed Python functions for the Lua files of jobs/lua, a module per subject.

Each script has one function with named parameters, which builds KEYS and ARGV in the order of the Lua file's
header and decodes the reply. A script that callers batch with others has two: `…_call` builds the call,
`…_reply` decodes its reply. `runner` loads and runs the scripts; apart from code that batches
such calls, nothing else calls it.
"""
