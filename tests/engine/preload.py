"""What the server of test processes has loaded before it forks."""

import kdcli.commands.train
import kdcli.engine.build
import kdcli.engine.train
import kdcli.models.cifar.resnet
import kdcli.report.diagnostics
import kdcli.report.metrics
import kdcli.report.terminal
import kdcli.tasks.classification.task  # noqa: F401
