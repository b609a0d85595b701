"""The examples of docs/several-gpus.md are what their tools read, and ask torchrun for what it has."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import yaml
from torch.distributed.run import parse_args

from engine.__main__ import _parser

PAGE = (Path(__file__).parents[2] / "docs" / "several-gpus.md").read_text("utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def asked_of_torchrun(words: list[str]) -> tuple[Any, Any]:
    """What torchrun and the engine read in the words behind `torchrun`."""
    launch = parse_args(words)  # type: ignore[no-untyped-call]
    assert (launch.module, launch.training_script) == (True, "engine")
    return launch, _parser().parse_args(launch.training_script_args)


def words_behind_torchrun(script: str) -> list[str]:
    """Of its last command, with any value for a variable."""
    command = script[script.rindex("torchrun") :].replace("\\\n", " ")
    return shlex.split(re.sub(r"\$\w+", "2", command))[1:]


def test_the_shell_examples_are_shell_and_ask_for_what_there_is() -> None:
    scripts = fenced("bash")
    assert len(scripts) == 3
    for script in scripts:
        read = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=20, check=False)
        assert (read.returncode, read.stderr) == (0, "")
    _, by_hand, slurm = scripts
    launch, train = asked_of_torchrun(words_behind_torchrun(by_hand))
    assert (launch.standalone, launch.nproc_per_node, train.resume) == (True, "4", "newest")
    launch, train = asked_of_torchrun(words_behind_torchrun(slurm))
    assert (launch.nnodes, launch.rdzv_backend, launch.rdzv_endpoint, train.resume) == (
        "2",
        "c10d",
        "2:29500",
        "newest",
    )
    warned, shutdown = int(re.findall(r"--signal=TERM@(\d+)", slurm)[0]), launch.shutdown_timeout
    assert shutdown < warned, "the job's time would be over before torchrun gives up"


def test_the_kubernetes_example_is_a_service_and_a_job_that_name_each_other() -> None:
    (text,) = fenced("yaml")
    service, job = yaml.safe_load_all(text)
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    name, pod = job["metadata"]["name"], job["spec"]["template"]["spec"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert (service["spec"]["clusterIP"], pod["subdomain"]) == ("None", service["metadata"]["name"])
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    (container,) = pod["containers"]
    launch, train = asked_of_torchrun(container["command"][1:])
    assert (launch.nnodes, launch.rdzv_endpoint) == ("2", f"{name}-0.{pod['subdomain']}:29500")
    assert int(launch.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert train.resume == "newest"
    assert launch.shutdown_timeout < pod["terminationGracePeriodSeconds"]
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
