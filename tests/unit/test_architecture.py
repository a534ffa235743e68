"""The shape of the code: import direction, one table of problems, tables as migrated."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from admin_api import errors
from admin_api.catalog.database import Catalog
from admin_api.catalog.models import Base
from admin_api.settings import CatalogSettings
from admin_api.web.problems import STATUSES

PACKAGE = Path(errors.__file__).parent
LAYERS = [
    "cli",
    "worker",
    "web",
    "services",
    "catalog",
    "products",
    "storage",
    "keys",
    "keyfiles",
    "uris",
    "memory",
    "buffers",
    "settings",
    "errors",
]
# What a layer may import, besides itself.
ALLOWED = {
    "cli": {"web", "worker", "services", "products", "settings", "errors", "uris"},
    "worker": {"web", "services", "catalog", "memory", "settings", "errors"},
    "web": {
        "worker",
        "memory",
        "buffers",
        "services",
        "catalog",
        "storage",
        "settings",
        "errors",
        "uris",
    },
    "services": {
        "catalog",
        "products",
        "storage",
        "keys",
        "keyfiles",
        "settings",
        "errors",
        "uris",
    },
    "catalog": {"settings", "errors"},
    "products": {"keys", "errors"},
    "storage": {"keys", "keyfiles", "settings", "errors"},
    "keys": {"errors"},
    "keyfiles": {"errors"},
    "uris": set(),
    "memory": set(),
    "buffers": set(),
    "settings": {"errors"},
    "errors": set(),
}


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("admin_api"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [name.split(".") for name in names]
            found |= {part[1] for part in parts if len(part) > 1 and part[1] in LAYERS}
    return found


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_downwards_only(layer: str) -> None:
    files = sorted((PACKAGE / layer).rglob("*.py")) or [PACKAGE / f"{layer}.py"]
    for path in files:
        assert _imports(path) - {layer} <= ALLOWED[layer], path


def test_of_the_command_only_the_local_verbs_know_the_web_layer() -> None:
    for path in (PACKAGE / "cli").rglob("*.py"):
        assert path.name == "local.py" or "web" not in _imports(path), path


def test_every_error_has_a_status_and_every_status_an_error() -> None:
    codes = {
        item.code
        for item in vars(errors).values()
        if isinstance(item, type) and issubclass(item, errors.StorageManagerError)
    }
    assert codes == set(STATUSES)


def test_every_module_says_what_it_is() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text())), path


def _differences(catalog: Catalog) -> list[object]:
    with catalog._engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)


def test_migrations_make_the_tables_of_the_models_in_sqlite(tmp_path: Path) -> None:
    catalog = Catalog(CatalogSettings(url=f"sqlite:///{tmp_path / 'catalog.sqlite'}"))
    catalog.migrate()
    catalog.migrate()
    assert _differences(catalog) == []


def test_migrations_make_the_tables_of_the_models_in_postgresql(database) -> None:
    settings = CatalogSettings(
        url=database.url(database.new_database()), password_file=database.password_file
    )
    catalog = Catalog(settings)
    catalog.migrate()
    catalog.migrate()
    assert _differences(catalog) == []
    catalog.close()


def test_a_migration_on_a_machine_that_stands_still_for_a_while_goes_on(
    database, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CatalogSettings(
        url=database.url(database.new_database()),
        password_file=database.password_file,
        busy_seconds=0.6,  # other transactions are ended when they stand still for a third of it
    )
    prepare = ScriptDirectory.from_config

    def slow(config: Config) -> ScriptDirectory:
        time.sleep(0.5)
        return prepare(config)

    monkeypatch.setattr(ScriptDirectory, "from_config", slow)
    catalog = Catalog(settings)
    catalog.migrate()
    assert _differences(catalog) == []
    catalog.close()


def test_a_catalog_of_this_version_is_opened_without_the_tools_that_migrate(tmp_path: Path) -> None:
    settings = CatalogSettings(url=f"sqlite:///{tmp_path}/catalog.db")
    Catalog(settings).migrate()
    program = (
        "import sys; from admin_api.catalog.database import Catalog;"
        "from admin_api.settings import CatalogSettings;"
        "Catalog(CatalogSettings(url=sys.argv[1])).migrate();"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program, settings.url], check=True)
