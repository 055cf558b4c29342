"""The producer's client.

Fleet submits fetches and finds batches. Batch counts, waits, reads results and cancels. DeadLetters lists,
retries and purges. Submitter is shared with workers, which submit the fetches of the inbox and of arq jobs.
"""
