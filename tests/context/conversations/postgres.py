"""A PostgreSQL server of the tests' own: in a folder that goes with it, reached by a socket there.

It is the machine's (Debian's package has it), or there is none.
"""

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

REQUIRED = "LATENTMAS_POSTGRES_REQUIRED"
NEEDED = ("initdb", "pg_ctl", "postgres")
DEBIAN = Path("/usr/lib/postgresql")
START_TIMEOUT_S = 60
DATABASE, USER = "postgres", "tester"

# The data are thrown away, so nothing is kept safe from a loss of power.
SETTINGS = (
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "shared_buffers=16MB",
    "max_connections=60",
)


def find_postgres() -> Path | None:
    """The folder of the newest server's programs."""
    on_path = shutil.which("pg_ctl")
    by_version = sorted(DEBIAN.glob("*/bin"), key=lambda folder: float(folder.parent.name))
    folders = [*reversed(by_version), *([Path(on_path).parent] if on_path else [])]
    return next(
        (one for one in folders if all((one / program).exists() for program in NEEDED)), None
    )


def is_required() -> bool:
    """Whether tests without a server are to fail: so it is where they have to be run."""
    return os.environ.get(REQUIRED, "") not in ("", "0")


class PostgresServer:
    """Started and stopped at will; ``remove`` ends it for good.

    The server refuses to run as root, who therefore has it run as the package's own user.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._user = "postgres" if os.geteuid() == 0 else None
        # The path of a socket has about 100 bytes at most, fewer than folders of pytest may have.
        self._folder = Path(tempfile.mkdtemp(prefix="latentmas-pg-"))
        self.password = secrets.token_hex(16)
        password_file = self._folder / "password"
        password_file.write_text(self.password)
        if self._user is not None:
            owner = pwd.getpwnam(self._user)
            for path in (self._folder, password_file):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        self._run(
            "initdb",
            *("--no-sync", "--encoding=UTF8", "--locale=C", f"--username={USER}"),
            *("--auth=scram-sha-256", f"--pwfile={password_file}"),
        )

    @property
    def url(self) -> str:
        return self.url_with(self.password)

    def url_with(self, password: str) -> str:
        socket = quote(str(self._folder), safe="")
        return f"postgresql://{USER}:{password}@/{DATABASE}?host={socket}"

    def start(self) -> None:
        options = " ".join(f"-c {setting}" for setting in SETTINGS)
        log = self._folder / "log"
        self._run("pg_ctl", "start", "-w", "-l", str(log), "-o", f"{options} -k {self._folder}")

    def stop(self) -> None:
        """At once: connections are cut, what is under way is undone."""
        self._run("pg_ctl", "stop", "-w", "-m", "fast")

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> None:
        """Output goes to a file: a server that inherited a pipe would keep it open."""
        command = [str(self._programs / program), "-D", str(self._data), *arguments]
        with tempfile.TemporaryFile() as output:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                user=self._user,
                group=self._user,
                extra_groups=[] if self._user else None,
                cwd=self._folder,
                timeout=START_TIMEOUT_S,
                check=False,
            )
            output.seek(0)
            assert ended.returncode == 0, output.read().decode()
