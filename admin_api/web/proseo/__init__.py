"""The wire contract of prosEO's storage manager: ``/proseo/storage-mgr/{any}`` and actuator health.

Its own models, errors and rules of paths over the same services as ``/v1``; the two share nothing
else.  Section numbers are those of the contract.  Set up by ``web/app.py`` where the settings
enable it.
"""
