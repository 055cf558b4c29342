"""Which log lines may be asked for."""

import logging

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO}
