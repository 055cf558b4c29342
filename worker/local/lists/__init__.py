"""Lists of fetches: their files and formats, and the stream of fetches that is read twice.

The first pass checks every fetch and enqueues none. The second one enqueues. A reader turns one format into
lines with a URL or a JSON object, the grammar of jobs/contract/fetch_list.py.
"""
