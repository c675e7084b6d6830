"""How an algorithm says what PEFT's config must hold for it, see `Delta.peft_fields`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Fields = Mapping[str, Any]
"""The fields of adapter_config.json that one module needs, with `peft_type`.

Those of several modules are joined: lists and mappings are united, an `Otherwise` gives way to what another module
says, and everything else has to agree, or to go by one of PEFT's patterns (`rank_pattern` and its like).
"""


class Otherwise(NamedTuple):
    """The value of a field that this module does not depend on, for where no other module says one."""

    value: Any
