"""The database's password changes while the service runs."""

from __future__ import annotations

import secrets
from pathlib import Path

import psycopg

from admin_api.catalog.database import Catalog
from admin_api.settings import CatalogSettings


def test_the_database_password_changes_and_no_connection_fails_at_any_step(
    database, tmp_path: Path
) -> None:
    role, old, new = f"owner_{secrets.token_hex(4)}", secrets.token_hex(16), secrets.token_hex(16)
    name = database.new_database()
    admin = psycopg.connect(
        f"host=127.0.0.1 port={database.port} user=postgres dbname={name}",
        password=database.password_file.read_text().strip(),
        autocommit=True,
    )

    def takes(password: str) -> None:
        admin.execute(f"ALTER ROLE {role} PASSWORD '{password}'".encode())

    admin.execute(f"CREATE ROLE {role} LOGIN; GRANT ALL ON SCHEMA public TO {role}".encode())
    takes(old)
    file = tmp_path / "password"
    file.write_text(f"{old}\n")
    url = database.url(name).replace("postgres@", f"{role}@")
    catalog = Catalog(CatalogSettings(url=url, password_file=file))
    catalog.migrate()
    steps = [
        lambda: file.write_text(f"{new}\n{old}\n"),
        lambda: takes(new),
        lambda: file.write_text(f"{new}\n"),
    ]
    for step in steps:
        step()
        catalog.ping()  # a connection that is there
        catalog.close()
        catalog.ping()  # a new one
    catalog.close()
    admin.close()
