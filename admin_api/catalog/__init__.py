"""The catalog: an index of the store in a database (design section 5); rebuilt from records.

``database`` (opening, sessions, ``migrations``), ``models`` (the tables), ``entries`` (their rows
as the services see them), ``clock`` (the database's), ``events`` (the log), ``queries`` (listings,
each with its index), ``usage`` (sums that are kept), ``leased`` (what is in use), ``multiparts``
(the journal of multipart uploads).
"""
