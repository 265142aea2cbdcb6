"""Calendars, tasks and dates: standard iCalendar files, CalDAV collections, and days of two calendars."""
