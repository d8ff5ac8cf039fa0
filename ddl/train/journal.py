"""The journal: what the leader tells people and files while a job runs.

Any rank may have to take it up; what it says in metrics.jsonl, the ledger and summary.json is one story."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddl.comm import Group
from ddl.data import Plan
