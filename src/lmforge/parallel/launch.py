"""`lmforge launch RECIPE`: the files that start a training on the machines of a Slurm, Kubernetes or Ray cluster.

    recipe + nodes, devices of each ─▶ NAME.slurm | NAME.yaml | NAME.ray.py ─▶ torchrun on every node ─▶ lmforge train

All three start again what failed: torchrun its processes, the cluster the nodes; training goes on from the newest
checkpoint, so the run's folder must be on a disk that all nodes see. Nothing is submitted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Literal

from lmforge.errors import InputError

Target = Literal["slurm", "kubernetes", "ray"]
PORT = 29_500
# torch 2.13: with the agent's store shared, workers of a second attempt find the addresses of the first
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "OMP_NUM_THREADS": "1"}
# seconds from the wish to stop until processes are killed: a checkpoint is saved in them
GRACE = 300


@dataclasses.dataclass(frozen=True)
class Job:
    """What a cluster must know. `devices` of each of `nodes`, GPUs unless `cpu`; `restarts` of the processes before the
    job counts as failed. time, partition, account: Slurm's; image, volume (a PersistentVolumeClaim that holds the run's
    folder, mounted at `mount`), namespace: those of Kubernetes."""

    nodes: int | None = None
    devices: int | None = None
    cpu: bool = False
    restarts: int = 3
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    image: str | None = None
    volume: str | None = None
    mount: str = "/run-data"
    namespace: str = "default"
    overrides: tuple[str, ...] = ()  # of the recipe's keys


REQUIRED: Mapping[Target, tuple[str, ...]] = {
    "slurm": ("nodes", "devices", "time"),
    "kubernetes": ("nodes", "devices", "image", "volume"),
    "ray": ("nodes", "devices"),
}


def job_files(target: Target, name: str, recipe: Path, job: Job, processes: int | None = None) -> dict[str, str]:
    """{file name: content} that start `recipe`'s training. `processes`: how many its layout needs (None: any number).

    Raises:
        InputError: settings are missing (names all of them), are not what the cluster understands, or give another
            number of processes than the layout needs.
    """
    _check(target, job, processes)
    return _WRITERS[target](name, recipe, job)


def _check(target: Target, job: Job, processes: int | None) -> None:
    missing = [f"--{key}" for key in REQUIRED[target] if getattr(job, key) is None]
    if missing:
        raise InputError(f"launch --{target}: {', '.join(missing)} not given; {target} cannot start the job without")
    wrong = [f"--{key} {getattr(job, key)}" for key in ("nodes", "devices") if (getattr(job, key) or 0) < 1]
    if wrong or job.restarts < 0:
        raise InputError(f"launch: {', '.join(wrong) or f'--restarts {job.restarts}'}: give a number of at least 1")
    if target == "slurm" and not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", job.time or ""):
        raise InputError(f"launch --time {job.time}: not a time that Slurm knows; give days-hours:minutes:seconds")
    if target == "kubernetes" and not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", job.volume or ""):
        raise InputError(f"launch --volume {job.volume}: not the name of a PersistentVolumeClaim")
    started = (job.nodes or 0) * (job.devices or 0)
    if processes is not None and started % processes:
        raise InputError(
            f"launch: {job.nodes} nodes of {job.devices} are {started} processes, and the layout in [parallel] needs a "
            f"multiple of {processes}; change --nodes, --devices or a degree in [parallel]"
        )


def _torchrun(recipe: str, job: Job) -> tuple[list[str], list[str]]:
    """The command that every node runs; between its two parts belongs where the nodes meet."""
    changes = [word for change in job.overrides for word in ("--set", change)]
    sizes = [f"--nnodes={job.nodes}", f"--nproc-per-node={job.devices}", f"--max-restarts={job.restarts}"]
    return ["torchrun", *sizes], ["-m", "lmforge.cli", "train", recipe, *changes]


def _line(recipe: str, job: Job, endpoint: str, meeting: str) -> str:
    """The same as a line of a shell; `endpoint` and `meeting` may name its variables."""
    head, training = map(shlex.join, _torchrun(recipe, job))
    return f'{head} --rdzv-backend=c10d --rdzv-endpoint="{endpoint}:{PORT}" --rdzv-id="{meeting}" {training}'


def _slurm(name: str, recipe: Path, job: Job) -> dict[str, str]:
    options = {
        "job-name": name, "nodes": job.nodes, "ntasks-per-node": 1, "time": job.time, "partition": job.partition,
        "account": job.account, "gpus-per-node": None if job.cpu else job.devices,
        "cpus-per-task": job.devices if job.cpu else None, "output": f"{name}-%j.log", "open-mode": "append",
        "signal": f"B:TERM@{GRACE}",
    }  # fmt: skip
    lines = [f"#SBATCH --{key}={value}" for key, value in options.items() if value is not None]
    command = _line(str(recipe), job, "$head", "$SLURM_JOB_ID")
    exports = "\n".join(f"export {key}={value}" for key, value in ENVIRONMENT.items())
    text = _SLURM.substitute(options="\n".join(lines), exports=exports, command=command)
    return {f"{name}.slurm": text}


_SLURM = Template(
    """#!/bin/bash
# Written by `lmforge launch`. Submit: sbatch THIS_FILE
$options
#SBATCH --requeue
set -euo pipefail
$exports
# read whole and cut here: "| head" would end scontrol by a broken pipe, and with pipefail the job
nodes=$$(scontrol show hostnames "$$SLURM_JOB_NODELIST")
head=$${nodes%%$$'\\n'*}

srun --kill-on-bad-exit=1 $command &
step=$$!
# Near the end of its time the job is told so: training saves a checkpoint, and the job goes back into the queue.
again=0
trap 'again=1; kill -TERM "$$step" 2>/dev/null || true' TERM
wait "$$step" && status=0 || status=$$?
if [ "$$again" = 1 ]; then
    wait "$$step" || true
    scontrol requeue "$$SLURM_JOB_ID"
fi
exit "$$status"
"""
)


def _kubernetes(name: str, recipe: Path, job: Job) -> dict[str, str]:
    label = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:50] or "lmforge"
    command = _line("/recipe/recipe.toml", job, f"{label}-0.{label}", label)
    environment = "\n".join(
        f"            - {{name: {key}, value: {json.dumps(value)}}}" for key, value in ENVIRONMENT.items()
    )
    resource = f'cpu: "{job.devices}"' if job.cpu else f'nvidia.com/gpu: "{job.devices}"'
    text = recipe.read_text()
    return {
        f"{name}.yaml": _KUBERNETES.substitute(
            label=label,
            namespace=json.dumps(job.namespace),
            nodes=job.nodes,
            backoff=(job.nodes or 1) * (job.restarts + 1),
            grace=GRACE,
            image=json.dumps(job.image),
            command=json.dumps(f"cd {shlex.quote(job.mount)} && exec {command}"),
            environment=environment,
            resource=resource,
            mount=json.dumps(job.mount),
            volume=json.dumps(job.volume),
            port=PORT,
            recipe="\n".join(f"    {line}".rstrip() for line in text.splitlines()),
        )
    }


_KUBERNETES = Template(
    """# Written by `lmforge launch`. Submit: kubectl apply -f THIS_FILE
apiVersion: v1
kind: ConfigMap
metadata: {name: $label, namespace: $namespace}
data:
  recipe.toml: |
$recipe
---
apiVersion: v1
kind: Service
metadata: {name: $label, namespace: $namespace}
spec:
  clusterIP: None  # a name for each pod, by which torchrun's processes find each other
  publishNotReadyAddresses: true
  selector: {job-name: $label}
  ports:
    - {name: rendezvous, port: $port}
---
apiVersion: batch/v1
kind: Job
metadata: {name: $label, namespace: $namespace}
spec:
  completionMode: Indexed
  completions: $nodes
  parallelism: $nodes
  backoffLimit: $backoff
  template:
    metadata:
      labels: {job-name: $label}
    spec:
      subdomain: $label
      restartPolicy: OnFailure
      terminationGracePeriodSeconds: $grace
      containers:
        - name: train
          image: $image
          command: ["bash", "-c", $command]
          env:
$environment
          resources:
            limits: {$resource}
          volumeMounts:
            - {name: run, mountPath: $mount}
            - {name: recipe, mountPath: /recipe}
            - {name: shm, mountPath: /dev/shm}
      volumes:
        - name: run
          persistentVolumeClaim: {claimName: $volume}
        - name: recipe
          configMap: {name: $label}
        - name: shm
          emptyDir: {medium: Memory}
"""
)


def _ray(name: str, recipe: Path, job: Job) -> dict[str, str]:
    head, training = _torchrun(str(recipe), job)
    text = _RAY.substitute(
        nodes=job.nodes,
        devices=job.devices,
        restarts=job.restarts,
        bundle=json.dumps({"CPU": job.devices} if job.cpu else {"CPU": 1, "GPU": job.devices}),
        environment=json.dumps(ENVIRONMENT),
        command=json.dumps(head),
        training=json.dumps(training),
        port=PORT,
        name=name,
    )
    return {f"{name}.ray.py": text}


_RAY = Template(
    '''"""Written by `lmforge launch`. Submit: ray job submit --working-dir . -- python THIS_FILE"""

import os
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

NODES, RESTARTS = $nodes, $restarts
BUNDLE = $bundle  # of each node
ENVIRONMENT = $environment
TORCHRUN, TRAINING = $command, $training


@ray.remote(max_restarts=0)
class Node:
    """One machine of the training."""

    def address(self):
        return ray.util.get_node_ip_address()

    def train(self, head, attempt):
        """torchrun on this machine, until it ends; its exit status."""
        meet = ["--rdzv-backend=c10d", f"--rdzv-endpoint={head}:$port", f"--rdzv-id=$name-{attempt}"]
        return subprocess.run([*TORCHRUN, *meet, *TRAINING], env={**os.environ, **ENVIRONMENT}).returncode


def attempt(number):
    """Take the nodes, train on them; whether it came to its end."""
    group = placement_group([BUNDLE] * NODES, strategy="STRICT_SPREAD")
    try:
        ray.get(group.ready())
        nodes = [
            Node.options(
                num_cpus=BUNDLE["CPU"],
                num_gpus=BUNDLE.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index),
            ).remote()
            for index in range(NODES)
        ]
        head = ray.get(nodes[0].address.remote())
        return not any(ray.get([node.train.remote(head, number) for node in nodes]))
    except ray.exceptions.RayError as error:  # a machine was lost
        print(f"attempt {number}: {error}", file=sys.stderr)
        return False
    finally:
        remove_placement_group(group)


if __name__ == "__main__":
    ray.init(address="auto")
    sys.exit(0 if any(attempt(number) for number in range(RESTARTS + 1)) else 1)
'''
)

_WRITERS: Mapping[Target, Callable[[str, Path, Job], dict[str, str]]] = {
    "slurm": _slurm,
    "kubernetes": _kubernetes,
    "ray": _ray,
}
