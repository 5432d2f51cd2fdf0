"""``python -m coalora_lib.book.building build ...``: jupyter-book, with Sphinx in two processes."""

from functools import partial

from jupyter_book import sphinx
from jupyter_book.cli.main import main

#: Processes: the machine that the project is made for has two cores.
JOBS = 2

if __name__ == "__main__":
    # The command has no option for it, the function that it calls has.
    sphinx.build_sphinx = partial(sphinx.build_sphinx, jobs=JOBS)
    main(prog_name="jupyter-book")
