"""What the server of test processes has loaded before it forks."""

import importlib
import pkgutil

import kdcli.commands.train
import kdcli.data
import kdcli.distill
import kdcli.engine
import kdcli.losses
import kdcli.models.cifar
import kdcli.report
import kdcli.tasks

for package in (
    kdcli.data,
    kdcli.distill,
    kdcli.engine,
    kdcli.losses,
    kdcli.models.cifar,
    kdcli.report,
    kdcli.tasks,
):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        try:
            importlib.import_module(module.name)
        except ImportError:  # an extra that is not installed
            continue
