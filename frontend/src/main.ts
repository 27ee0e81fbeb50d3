// Starts the page.

import "./page.css";
import { browserAddressBar, browserPorts } from "./browser.ts";
import { Page } from "./page.ts";
import { applyStoredTheme } from "./theme.ts";

applyStoredTheme();
new Page(browserPorts(), browserAddressBar()).start();
