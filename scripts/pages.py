"""Write the generated pages in docs/, or say which of them are old.

python scripts/pages.py            write docs/models.md, docs/api.md and docs/recipes.md
python scripts/pages.py --check    exit with 1, and name them, if any is not what would be written
"""

from __future__ import annotations

import sys

import api_tables
import models_table
import recipe_docs


def main(arguments: list[str]) -> int:
    """Write the pages, or check them."""
    old = 0
    for maker in (models_table, api_tables, recipe_docs):
        path, wanted = maker.PAGE, maker.page()
        if arguments != ["--check"]:
            path.write_text(wanted, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != wanted:
            print(f"error: docs/{path.name} is old: run make docs", file=sys.stderr)
            old = 1
    return old


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
