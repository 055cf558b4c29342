"""The lifecycle of one worker process: composition, arq's loop, heartbeat, statistics, disk guard."""
