"""The producer's client: one class per thing that a producer handles.

Fleet submits fetches and finds batches; Batch counts, waits, reads results and cancels; DeadLetters lists,
retries and purges. Submitter is the part that workers use too, for what comes in by the inbox and arq.
"""
