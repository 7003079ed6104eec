"""The pages, one file each; `install` gives them their addresses."""

from __future__ import annotations

from stille.web.site import Site


def install(site: Site, private: bool) -> None:
    """Register the pages of a site with NiceGUI.

    Args:
        private: there is a password, so one can log out.
    """
    from nicegui import ui

    from stille.web.pages import ask, events, health, live, timeline, zones
    from stille.web.pages.frame import frame

    for path, title, build in (
        ("/", "Live", live.build),
        ("/events", "Events", events.build),
        ("/timeline", "Timeline", timeline.build),
        ("/zones", "Zones", zones.build),
        ("/ask", "Ask", ask.build),
        ("/cameras", "Cameras", health.build),
    ):

        def page(path: str = path, build=build) -> None:
            with frame(site, path, private):
                build(site)

        # Without arguments: NiceGUI would take them from the address.
        ui.page(path, title=f"{title} - Stille")(_bare(page))


def _bare(page):
    return lambda: page()
