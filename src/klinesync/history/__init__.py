"""Every candle that is not there: what is missing, from where it comes, when it is asked for again."""
