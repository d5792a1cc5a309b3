
optional_nothing