"""Makes sure that there is a Chromium for the browser tests: takes the one that is there, else installs Debian's."""

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_browser() -> str | None:
    """Path of a Chromium or Chrome; INCIPIT_TEST_BROWSER names one in an unusual place."""
    named = os.environ.get("INCIPIT_TEST_BROWSER")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


def main() -> int:
    """Install one if there is none; the exit status says whether there is one now."""
    if find_browser():
        return 0
    apt = shutil.which("apt-get")
    if apt is None:
        print(
            "Browser tests need Chromium and there is no apt-get to install it with; install Chromium or Chrome.",
            file=sys.stderr,
        )
        return 1
    prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    print("Installing Chromium for the browser tests …", file=sys.stderr)
    for command in (
        ["update", "-q"],
        ["install", "-y", "-q", "--no-install-recommends", "chromium", "fonts-dejavu-core"],
    ):
        done = subprocess.run([*prefix, apt, *command], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            print(
                f"Browser tests need Chromium and installing it failed: {done.stderr.strip()[-500:]}", file=sys.stderr
            )
            return 1
    return 0 if find_browser() else 1


if __name__ == "__main__":
    sys.exit(main())
