"""Makes sure that there are nginx and Caddy for the tests of deploy/: takes those that are there, else installs Debian's."""

import os
import shutil
import subprocess
import sys

PACKAGES = {"nginx": "nginx-light", "caddy": "caddy"}


def missing() -> list[str]:
    """The programs that are not there."""
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    return [name for name in PACKAGES if shutil.which(name, path=places) is None]


def main() -> int:
    """Install those that are missing; the exit status says whether both are there now."""
    if not missing():
        return 0
    apt = shutil.which("apt-get")
    if apt is None:
        print(
            f"Tests of deploy/ need {' and '.join(missing())}, and there is no apt-get; install them.", file=sys.stderr
        )
        return 1
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    # RUNLEVEL: the packages would start servers of their own.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    print("Installing nginx and Caddy for the tests of deploy/ …", file=sys.stderr)
    packages = [PACKAGES[name] for name in missing()]
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *packages]):
        done = subprocess.run([*prefix, apt, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"Installing {' and '.join(packages)} failed: {done.stderr.strip()[-500:]}", file=sys.stderr)
            return 1
    return 1 if missing() else 0


if __name__ == "__main__":
    sys.exit(main())
