"""The command `edge-agent`."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from edge_agent import settings
from shared import settings as files

EXAMPLE: Final = """\
a first agent.toml:

  site = "plant-a"
  name = "edge-1"
  state = "state"              # folder of the journal; relative to this file
  models = "models"            # one folder a model, with model.toml and model.onnx

  [broker]                     # of the site, where the devices publish
  host = "127.0.0.1"
  port = 1883

  [uplink_broker]              # of the cloud; leave it out for a site that stands alone
  host = "cloud.example"
  port = 8883
  ca_file = "/etc/backhaul/ca.pem"

a device then publishes to   backhaul/v1/plant-a/jobs/DEVICE/MODEL
and finds its replies under  backhaul/v1/plant-a/results/#
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    parser = _parser()
    given = parser.parse_args(argv)
    try:
        status: int = given.act(given)
        sys.stdout.flush()
    except files.BadSettings as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Runs the jobs that a site's devices publish over MQTT, online or not.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the agent until SIGTERM or Ctrl-C")
    run.add_argument("--config", type=Path, required=True, metavar="FILE", help="the agent's settings, TOML")
    run.add_argument("--verbose", action="store_true", help="log each job that is refused, and more")
    run.set_defaults(act=_run)

    status = commands.add_parser("status", help="what a running agent says of itself")
    status.add_argument("--config", type=Path, metavar="FILE", help="settings of the agent, for its port")
    status.add_argument("--url", metavar="URL", help="its local port, instead of --config")
    status.add_argument("--json", action="store_true", help="all of it, for scripts")
    status.set_defaults(act=_status)

    check = commands.add_parser(
        "check-config", help="read settings and models, and say what is wrong with them"
    )
    check.add_argument("--config", type=Path, required=True, metavar="FILE")
    check.add_argument("--json", action="store_true", help="what was found, for scripts")
    check.set_defaults(act=_check_config)
    return parser


def _run(given: argparse.Namespace) -> int:
    policy = settings.load(given.config)
    logging.basicConfig(
        level=logging.DEBUG if given.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    from edge_agent import agent  # with numpy and ONNX Runtime, which `status` does not need
    from edge_agent.journal import errors

    status = 0
    try:
        asyncio.run(agent.run(policy))
    except* errors.JournalError as failed:
        for error in failed.exceptions:
            print(f"edge-agent: {error}", file=sys.stderr)
        status = 1
    return status


def _status(given: argparse.Namespace) -> int:
    if given.url is None and given.config is None:
        print("edge-agent status: name the agent by --config FILE or --url URL", file=sys.stderr)
        return 2
    url = given.url
    if url is None:
        port = settings.load(given.config).http
        url = f"http://{port.host}:{port.port}"
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/status", timeout=5) as answer:
            told: dict[str, Any] = json.load(answer)
    except (urllib.error.URLError, OSError, ValueError) as error:
        print(f"edge-agent: no agent answers at {url}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(told, indent=2) if given.json else _readable(told))
    return 0


def _readable(told: dict[str, Any]) -> str:
    """The status for people, one fact a line."""
    now = told["telemetry"]

    def link(one: dict[str, Any]) -> str:
        if not one["configured"]:
            return "none"
        state = "connected" if one["connected"] else f"down ({one['error'] or 'connecting'})"
        return f"{one['address']} {state}"

    uplink = link(told["uplink"])
    if told["uplink"].get("connected"):
        uplink += ", the hub answers" if told["uplink"]["hub_reachable"] else ", but no hub answers"
    lines = [
        f"{told['site']}/{told['name']}  epoch {told['epoch']}  up {told['up_s']:.0f} s"
        f"  {'ready' if told['ready'] else 'not ready'}",
        f"  broker     {link(told['broker'])}",
        f"  uplink     {uplink}",
    ]
    for model in told["models"]:
        wanted = (
            "" if model["provider"] == model["wanted"] else f" (wanted {model['wanted']}: {model['reason']})"
        )
        lines.append(
            f"  model      {model['name']}@{model['version']} on {model['provider']}{wanted}, "
            f"{model['items_per_s']:.0f} items/s"
            + ("" if model.get("loaded", True) else ", idle: not in memory")
        )
    lines += [_engine(one) for one in told.get("engines", ()) if one["state"] != "built"]
    lines += _registry(told.get("registry"))
    lines += [
        f"  jobs       {now['jobs_total']:,} taken, {now['rejected_total']:,} rejected, "
        f"{now['replies_total']:,} replies",
        f"  waiting    {now['queued']:,} tasks, {now['running']} of them running; "
        f"{now['predicted_wait_s']:.2f} s of work",
        f"  overflow   {now['overflowed_total']:,} handed over, {now['reclaimed_total']:,} taken back, "
        f"{told['handed_over']:,} with the hub",
        f"  to sync    {now['to_sync']:,} records; journal {now['journal_bytes'] / 1e6:.1f} MB",
    ]
    lines += [
        f"  lane       {lane['lane']}: {lane['acknowledged']:,} of {lane['numbered']:,} acknowledged"
        for lane in now["lanes"]
    ]
    return "\n".join(lines)


def _engine(told: dict[str, Any]) -> str:
    """An engine of TensorRT that is not there yet."""
    how = told["state"] + (f" for {told['seconds']:.0f} s" if told["seconds"] is not None else "")
    why = f", failed {told['failures']} times: {told['reason']}" if told["failures"] else ""
    return f"  engine     {told['model']}@{told['version']} {how}{why}"


def _registry(told: dict[str, Any] | None) -> list[str]:
    """What the hub wants to have served, a line each."""
    if told is None:
        return []
    heard = "never heard" if told["heard_s"] is None else f"heard {told['heard_s']:.0f} s ago"
    lines = [f"  registry   {told['url']} {heard}" + (f" ({told['error']})" if told["error"] else "")]
    if told["warning"]:
        lines.append(f"  warning    {told['warning']}")
    for one in told["wanted"]:
        how = one["state"]
        if how == "fetching":
            how += f" {one['have']:,} of {one['size']:,} bytes"
        why = f": {one['reason']}" if one["reason"] else ""
        lines.append(f"  wanted     {one['model']}@{one['version']} {how}{why}")
    return lines


def _check_config(given: argparse.Namespace) -> int:
    policy = settings.load(given.config)
    from edge_agent import models

    folder = Path(policy.models)
    found = models.scan(folder) if folder.is_dir() else models.Found({}, {folder: "no such folder"})
    if given.json:
        report = {
            "site": policy.site,
            "name": policy.name,
            "models": [str(key) for key in sorted(found.models)],
            "broken": {str(where): why for where, why in found.broken.items()},
        }
        print(json.dumps(report, indent=2))
    else:
        print(f"{given.config}: {policy.agent}, journal in {policy.state}")
        for key, model in sorted(found.models.items()):
            print(f"  model {key}: {model.path.stat().st_size:,} bytes, sha256 {model.sha256[:12]}…")
        for where, why in found.broken.items():
            print(f"  broken: {where}: {why}")
    return 1 if found.broken else 0
