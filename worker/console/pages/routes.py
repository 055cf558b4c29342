"""The routes of all pages."""

from fetchfleet.worker.console.pages import batch_pages, dead_letter_pages, event_page, fleet_page, host_pages

ROUTES = [
    *fleet_page.ROUTES,
    *host_pages.ROUTES,
    *batch_pages.ROUTES,
    *dead_letter_pages.ROUTES,
    *event_page.ROUTES,
]
