"""The campaign: clients, kills and faults against the real service, and a checker of its promises.

    make campaign SECONDS=600 BACKEND=s3 CATALOG=postgresql SEED=7 FAULTS=kill,freeze,drop,F4

Black box: HTTP and the command line only.  ``site`` runs the services, ``bodies`` makes what is
sent, ``client`` sends it, ``workers`` decide what, ``chaos`` breaks things meanwhile, ``history``
keeps every request with its answer, ``ending`` looks at what is left, ``checker`` compares all of
it with the promises, ``driver`` runs one campaign, ``__main__`` prints its figures.
"""
