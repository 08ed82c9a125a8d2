import type en from "../en/adapters";
import type { Same } from "../words";

export default {
  title: "অ্যাডাপ্টার",
  lead: "এই মডেলের ওপর যা গড়া হয়েছে: লোড করুন, বদলান, নামান, মুছুন।",
  empty: "এখনো কোনো অ্যাডাপ্টার নেই",
  emptyHint: "একটি প্রশিক্ষণ দিন, অথবা peft বা হালকার লেখা ফোল্ডার আপলোড করুন।",
} satisfies Same<typeof en>;
