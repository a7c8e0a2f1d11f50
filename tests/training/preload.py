"""What the server of test processes has loaded before it forks."""

import importlib
import pkgutil

import kdcli.analysis
import kdcli.check
import kdcli.commands.train
import kdcli.data
import kdcli.distill
import kdcli.exports
import kdcli.losses
import kdcli.models.cifar
import kdcli.parallel
import kdcli.report
import kdcli.tasks
import kdcli.training

for package in (
    kdcli.data,
    kdcli.distill,
    kdcli.parallel,
    kdcli.training,
    kdcli.check,
    kdcli.analysis,
    kdcli.exports,
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
