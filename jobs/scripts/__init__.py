"""Typed Python functions for the Lua files in jobs/lua, by subject.

Each script has one function with named parameters. It builds KEYS and ARGV in the order of the header of the
Lua file, and decodes the reply. A script that callers batch with others has two functions: `…_call` builds
the call, and `…_reply` decodes its reply. `runner` loads and runs scripts.
"""
