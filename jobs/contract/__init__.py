"""The data that producers and workers exchange: types, checks and canonical forms. Pure.

Fetches and results (model, with modules of checks), URLs and lanes, IDs, the entry of a fetch in Redis, and
inbox messages and arq jobs from other languages.
"""
