"""The keeper: what keeps an engine's messages until every front end has them."""
