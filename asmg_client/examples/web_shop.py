"""A web shop, whose pages are made by threads: rank the products of a page, report what was shown and clicked.

python -m asmg_client.examples.web_shop http://127.0.0.1:8000
"""

import sys
from collections.abc import Sequence

from asmg_client import AsmgError, Click, Client, Event, EventBuffer, Impression, Item, Retry, new_id

PRODUCTS = {"boots": ["shoes"], "sandals": ["shoes"], "cap": ["hats"], "scarf": ["winter"], "gloves": ["winter"]}


class Shop:
    """What the pages of the shop ask and report. One for each process; all threads use it.

    Args:
        url: of the service.
    """

    def __init__(self, url: str) -> None:
        # A page waits 0.2 s for a ranking, and for the catalogue as long as it takes.
        self.fast = Client(url, retry=Retry(deadline_seconds=0.2, first_seconds=0.02))
        self.client = Client(url)
        self.events = EventBuffer(self.client, on_refused=self.refused, when_full="raise")

    def publish_catalogue(self) -> None:
        """Tell the service the products with their categories, as often as they change."""
        self.client.put_items([Item(product, categories) for product, categories in PRODUCTS.items()])

    def ranked(self, user: str | None, products: Sequence[str]) -> tuple[list[str], str | None]:
        """The products, the likeliest click first, and the id of the prediction. A shop does not fail because its
        ranking does: the products come as they were then.
        """
        try:
            prediction = self.fast.predict(user, products)
        except AsmgError:
            return list(products), None
        by_score = sorted(zip(prediction.scores, products, strict=True), reverse=True)
        return [product for _, product in by_score], prediction.request_id

    def shown(self, user: str, products: Sequence[str], request_id: str | None) -> Impression:
        """Report a page that a user has seen. It takes no time: the buffer sends it later."""
        impression = Impression(user, products, request_id=request_id or new_id())
        self.events.add(impression)
        return impression

    def clicked(self, impression: Impression, product: str) -> None:
        """Report a click on a page."""
        self.events.add(Click(impression.request_id, product))

    def refused(self, event: Event, error: AsmgError) -> None:
        """An event that the service does not take: a mistake of the shop, which somebody must see."""
        print(f"refused: {event}: {error}", file=sys.stderr)

    def close(self) -> None:
        """Send what is left."""
        self.events.close()
        self.client.close()
        self.fast.close()


def main(url: str) -> None:
    """A day in the shop: three users each see a page and click its first product."""
    shop = Shop(url)
    shop.publish_catalogue()
    for user in ("ann", "bob", "cem"):
        page, request_id = shop.ranked(user, list(PRODUCTS))
        impression = shop.shown(user, page, request_id)
        shop.clicked(impression, page[0])
        print(f"{user} saw {', '.join(page)}, and clicked {page[0]}")
    shop.close()
    counts = shop.events.counts
    print(f"{counts.accepted} events are stored, {counts.refused} were refused, {counts.lost} are lost")


if __name__ == "__main__":
    main(sys.argv[1])
