"""Opening the catalog: SQLite (WAL) or PostgreSQL, sessions, migrations.

The services get sessions from here and nothing else from SQLAlchemy's engine.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Connection,
    CursorResult,
    Engine,
    Select,
    Update,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session
from sqlalchemy.sql.compiler import SQLCompiler

from admin_api.catalog.models import Identity
from admin_api.errors import CatalogUnavailable, ConfigurationError, NoSpace
from admin_api.settings import CatalogSettings

_MIGRATIONS = Path(__file__).parent / "migrations"
#: Serialises migrations of several processes that start at once (any number, but always this).
_MIGRATION_LOCK = 7_237_601
_NO_TABLE = re.compile(r"no such table|relation \"\w+\" does not exist")


class Catalog:
    """The database, opened; ``reading`` and ``writing`` give sessions."""

    def __init__(self, settings: CatalogSettings) -> None:
        """Prepare the engine; nothing is connected yet."""
        self._url = _url(settings)
        self._writing = threading.Lock()
        self._texts: dict[Select[*tuple[Any, ...]], SQLCompiler] = {}
        self._busy_seconds = settings.busy_seconds
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        options: dict[str, Any] = {"pool_size": settings.pool_size, "max_overflow": 20}
        if self.is_sqlite:
            options["connect_args"] = {
                "timeout": settings.busy_seconds,
                "check_same_thread": False,
            }
        else:
            options |= {
                "pool_pre_ping": True,
                "pool_timeout": settings.busy_seconds,
                "connect_args": {
                    "connect_timeout": 5,
                    # A server that is gone without a word is noticed; without these a thread
                    # would wait for a quarter of an hour.
                    "keepalives": 1,
                    "keepalives_idle": 5,
                    "keepalives_interval": 2,
                    "keepalives_count": 3,
                    "tcp_user_timeout": 10_000,
                    # Who stands still in a transaction (a frozen process) is ended by the server
                    # while those whom it holds up still wait.
                    "options": f"-c lock_timeout={int(settings.busy_seconds * 1000)} "
                    "-c idle_in_transaction_session_timeout="
                    f"{int(settings.busy_seconds * 1000 / 3)}",
                },
            }
        self._engine = create_engine(self._url, **options)
        if settings.password_file and not self.is_sqlite:
            _connect_with(self._engine, settings.password_file)
        self._file: _File | None = None
        if self.is_sqlite:
            _prepare_sqlite(self._engine)
            if self._url.database and self._url.database != ":memory:":
                self._file = _File(Path(self._url.database))
                _connect_to(self._engine, self._file)
        self._writer = self._engine.execution_options(begin="IMMEDIATE")
        # PostgreSQL's default shows each statement another state: a product without its files.
        # SQLite's transactions are snapshots by themselves.
        self._reader = self._engine
        if not self.is_sqlite:
            self._reader = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one state of the catalog and changes nothing."""
        self._same_file()
        with _translated(), Session(self._reader, expire_on_commit=False) as session:
            yield session

    def glance(self, statement: Select[*tuple[Any, ...]], wanted: str) -> tuple[Any, ...] | None:
        """The first row of ``statement``, whose one open parameter is called ``wanted``.

        For what is asked a thousand times a second: a transaction and a session would take ten
        times as long as the look itself.  Values are the driver's own: texts and whole numbers.
        """
        self._same_file()
        query, values = self._plain(statement, wanted)
        with _translated():
            borrowed = self._engine.raw_connection()
        try:
            driver = cast("Any", borrowed.driver_connection)
            if self.is_sqlite:
                row = driver.execute(query, values).fetchone()
            else:
                driver.autocommit = True
                try:
                    row = driver.execute(query, values).fetchone()
                finally:
                    driver.autocommit = False
        except self._engine.dialect.loaded_dbapi.Error as error:
            borrowed.invalidate()
            raise CatalogUnavailable("The catalog database cannot be read now.") from error
        finally:
            borrowed.close()
        return cast("tuple[Any, ...] | None", row)

    def _plain(self, statement: Select[*tuple[Any, ...]], wanted: str) -> tuple[str, Any]:
        """The text of a statement for the driver, made once, and its parameters."""
        compiled = self._texts.get(statement)
        if compiled is None:
            compiled = self._texts[statement] = statement.compile(dialect=self._engine.dialect)
        values = compiled.construct_params({"wanted": wanted})
        if compiled.positiontup is None:
            return compiled.string, values
        return compiled.string, [values[name] for name in compiled.positiontup]

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A session whose changes are committed at the end, all or none.

        IntegrityError is passed on: the callers know what a clash means.
        """
        self._same_file()
        with (
            self._turn(),
            _translated(),
            Session(self._writer, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """The turn of one writer of this process, in SQLite.

        Of those who wait in SQLite itself each sleeps for a while and tries again, so that the
        database stands idle between them.
        """
        if not self.is_sqlite:
            yield
            return
        if not self._writing.acquire(timeout=self._busy_seconds):
            raise CatalogUnavailable("The catalog database is being written; try again.")
        try:
            yield
        finally:
            self._writing.release()

    def ping(self) -> None:
        """Return if the database answers and has our tables; raises CatalogUnavailable."""
        with self.reading() as session:
            session.execute(select(Identity.catalog_id)).one()

    def migrate(self) -> None:
        """Bring the tables to this version; several processes may do so at once."""
        with _translated(), self._writer.begin() as connection:
            if not self.is_sqlite:
                # Between two statements of a migration a slow machine may stand still for long.
                connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            if not _is_current(connection):
                # Imported here: a process that has nothing to migrate has no use for it.
                from alembic import command
                from alembic.config import Config

                config = Config()
                config.set_main_option("script_location", str(_MIGRATIONS))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        if self._file is not None:
            self._file.remember()

    def _same_file(self) -> None:
        if self._file is not None:
            self._file.check()

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()


def _is_current(connection: Connection) -> bool:
    """Whether the last migration has been made."""
    if not inspect(connection).has_table("alembic_version"):
        return False
    newest = max(path.name for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return newest.startswith(f"{found}_")


def changed(session: Session, statement: Update) -> bool:
    """Run an UPDATE; whether there was a row to change (the compare-and-set of the services)."""
    result = cast("CursorResult[Any]", session.execute(statement))
    return result.rowcount > 0


def _url(settings: CatalogSettings) -> URL:
    url = make_url(settings.url)
    if url.password:
        raise ConfigurationError(
            "catalog.url holds a password; put it into a file and name that in "
            "catalog.password_file."
        )
    backend = url.get_backend_name()
    if backend == "sqlite":
        return url
    if backend != "postgresql":
        raise ConfigurationError(f"catalog.url names {backend!r}; sqlite or postgresql are known.")
    if settings.password_file:
        _passwords(settings.password_file)  # said at the start if there is none
    return url.set(drivername="postgresql+psycopg")


def _passwords(path: Path) -> list[str]:
    try:
        found = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise ConfigurationError(
            f"Cannot read catalog.password_file {path}: {error.strerror}."
        ) from error
    if not found:
        raise ConfigurationError(f"catalog.password_file {path} is empty.")
    return found


def _connect_with(engine: Engine, path: Path) -> None:
    """Every new connection reads the password anew, so that it can change while we run.

    For a moment of its change nobody knows which one the database takes: the file has both then.
    """

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> Any:
        *others, last = _passwords(path)
        for password in others:
            with contextlib.suppress(dialect.loaded_dbapi.OperationalError):
                return dialect.connect(**(options | {"password": password}))
        return dialect.connect(**(options | {"password": last}))


class _File:
    """SQLite's file: once it is open, its path must lead to that very file.

    SQLite would go on with a deleted file, and a new connection would make an empty one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.identity: tuple[int, int] | None = None

    def remember(self) -> None:
        """From now on it must be the file that is there now."""
        self.identity = self._found()

    def check(self) -> None:
        """Raise CatalogUnavailable if the path leads elsewhere than at the first use."""
        if self.identity is None:
            self.remember()
        elif self._found() != self.identity:
            raise CatalogUnavailable(
                f"The catalog's file {self.path} was deleted or replaced while the service runs; "
                "nothing is taken or changed. Restart the service; if the file is lost for good, "
                "run `storage-manager rebuild` after that."
            )

    def _found(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _connect_to(engine: Engine, file: _File) -> None:
    """Let connections make the file only before it is remembered."""

    @event.listens_for(engine, "do_connect")
    def connect(dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> Any:
        file.check()
        mode = "rwc" if file.identity is None else "rw"
        return dialect.connect(f"file:{quote(str(file.path))}?mode={mode}", **options, uri=True)


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer takes its lock at once: a reader that turns writer would meet SQLITE_BUSY.
        mode = connection.get_execution_options().get("begin", "DEFERRED")
        connection.exec_driver_sql(f"BEGIN {mode}")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, PoolTimeoutError) as error:
        message = str(getattr(error, "orig", None) or error)
        if "disk is full" in message or "No space left" in message or "disk I/O error" in message:
            raise NoSpace("The disk of the catalog is full.") from error
        if isinstance(error, DBAPIError) and _NO_TABLE.search(message):
            raise CatalogUnavailable(
                "The catalog database has lost its tables. Restart the service; if the catalog is "
                "lost for good, run `storage-manager rebuild` after that."
            ) from error
        raise CatalogUnavailable(
            "The catalog database cannot be reached or written now; the log has its answer."
        ) from error
    except SQLAlchemyError as error:
        raise CatalogUnavailable("The catalog database failed; the log says how.") from error
